// A command, for Jobs and CronJobs: it greets the names in its arguments.
import { getArguments } from 'wasi:cli/environment@{{wasi}}';
import { greetings } from './greetings.js';

export const run = {
  run() {
    try {
      greetings(getArguments().slice(1)).forEach((line) => console.log(line));
    } catch (error) {
      console.error(`{{name}}: ${error.message}`);
      throw undefined; // the `err` of WASI's result, which has no value
    }
  },
};

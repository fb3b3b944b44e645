// build.mjs OUT: the plugin as a component. What it doesn't use of the engine (fetch, clocks, randomness) is left out of it.
import { componentize } from '@bytecodealliance/componentize-js';
import { readFile, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';

const here = import.meta.dirname ?? dirname(new URL(import.meta.url).pathname);
const { component } = await componentize(await readFile(join(here, 'greeter.js'), 'utf8'), {
  witPath: join(here, 'wit'),
  worldName: 'plugin',
  disableFeatures: ['http', 'fetch-event', 'random', 'clocks'],
});
await writeFile(process.argv[2], component);

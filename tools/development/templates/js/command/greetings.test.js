import assert from 'node:assert/strict';
import test from 'node:test';
import { greetings } from '../src/greetings.js';

test('each name is greeted', () => {
  assert.deepEqual(greetings([]), ['hello from {{name}}']);
  assert.deepEqual(greetings(['ada', 'bob']), ['hello ada', 'hello bob']);
  assert.throws(() => greetings(['ada', '']), /name 2 is empty/);
});

import assert from 'node:assert/strict';
import test from 'node:test';
import { respond } from '../src/routes.js';

test('paths have responses', () => {
  assert.deepEqual(respond('GET', '/'), [200, 'hello from {{name}}\n']);
  assert.deepEqual(respond('GET', '/hello/ada'), [200, 'hello ada\n']);
  assert.equal(respond('GET', '/hello/')[0], 404);
  assert.equal(respond('POST', '/')[0], 405);
});

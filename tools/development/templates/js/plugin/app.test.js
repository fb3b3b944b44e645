import assert from 'node:assert/strict';
import test from 'node:test';
import { greet, writeCard } from '../src/app.js';

test('cards are written', () => {
  assert.equal(greet('ada'), 'hello ada');
  assert.deepEqual(writeCard('ada', 'french'), { text: 'bonjour ada', letters: 10 });
  assert.throws(() => writeCard('', undefined));
});

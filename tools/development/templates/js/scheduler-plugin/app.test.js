import assert from 'node:assert/strict';
import test from 'node:test';
import { plugin } from '../src/app.js';

test('nodes are rejected and scored', () => {
  const instance = plugin.Instance.open('{"podsMax": 2}');
  const object = JSON.stringify({ metadata: { labels: { '{{name}}/avoid': 'yes' } } });
  instance.setNodes([{ name: 'a', object }, { name: 'b', object: '{"metadata": {}}' }]);
  const candidates = [{ node: 'a', pods: 0 }, { node: 'b', pods: 1 }, { node: 'c', pods: 2 }];
  assert.deepEqual(instance.filter('{}', candidates).map(({ candidate }) => candidate), [0, 2]);
  assert.deepEqual(instance.score('{}', candidates), [100, 99, 98]);
  assert.throws(() => plugin.Instance.open('{'));
});

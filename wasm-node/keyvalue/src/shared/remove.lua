-- Removes a namespace's data. KEYS: values, keys, tombstone, usage, index of namespaces. ARGV: the namespace in the index,
-- milliseconds in which late writes are refused.
redis.call('SET', KEYS[3], '1', 'PX', ARGV[2])
redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[4])
redis.call('SREM', KEYS[5], ARGV[1])
return 'OK'

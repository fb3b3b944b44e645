-- Reads of one namespace, without a write. KEYS: values, keys, tombstone. ARGV: operation, maximum bytes of the answer, then the
-- operation's own. A value has 16 digits of its revision in front. Sizes are checked before anything is read.
if redis.call('EXISTS', KEYS[3]) == 1 then return {'removed'} end
local op, most = ARGV[1], tonumber(ARGV[2])

if op == 'exists' then return {'exists', redis.call('HEXISTS', KEYS[1], ARGV[3])} end

if op == 'get' then
  local bytes = redis.call('HSTRLEN', KEYS[1], ARGV[3])
  if bytes > most then return {'foreign'} end
  return {'value', redis.call('HGET', KEYS[1], ARGV[3])}
end

if op == 'many' then
  local found, total = {}, 0
  for at = 3, #ARGV do
    total = total + math.max(redis.call('HSTRLEN', KEYS[1], ARGV[at]) - 16, 0)
    if total > most then return {'batch'} end
  end
  for at = 3, #ARGV do found[at - 2] = redis.call('HGET', KEYS[1], ARGV[at]) end
  return {'values', found}
end

-- A page of names: from, to, the number of names. `most` is the size of one name.
local names = redis.call('ZRANGEBYLEX', KEYS[2], ARGV[3], ARGV[4], 'LIMIT', 0, ARGV[5])
for _, name in ipairs(names) do
  if #name > most then return {'foreign'} end
end
return {'names', names}

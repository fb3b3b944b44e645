-- One write of one namespace, as a whole or not at all. KEYS: values, keys, tombstone, usage, index of namespaces.
-- ARGV: operation, the namespace in the index, quota of bytes, quota of keys, accounted bytes of a key, maximum bytes of a value with
-- its revision, then the operation's own. A field is BUCKET NUL KEY; a value has 16 digits of its revision in front.
local values, names, gone, usage, index = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
if redis.call('EXISTS', gone) == 1 then return {'removed'} end
local op, member = ARGV[1], ARGV[2]
local quota_bytes, quota_keys, key_cost, value_max = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])

-- Every key is read before the first write: one of another type fails here.
local count = redis.call('HLEN', values)
redis.call('ZCARD', names)
local known = redis.call('SISMEMBER', index, member)
local used = redis.call('HMGET', usage, 'bytes', 'revision')
local bytes, revision = tonumber(used[1] or '0'), tonumber(used[2] or '0')
if not bytes or not revision then return {'foreign'} end

-- Stores entries {field, value}; the caller has removed duplicates.
local function set(entries)
  local bytes_now, count_now = bytes, count
  for _, pair in ipairs(entries) do
    local field = pair[1]
    if redis.call('HEXISTS', values, field) == 1 then
      bytes_now = bytes_now - (#field - 1 + key_cost + math.max(redis.call('HSTRLEN', values, field) - 16, 0))
      count_now = count_now - 1
    end
    bytes_now = bytes_now + #field - 1 + key_cost + #pair[2]
    count_now = count_now + 1
  end
  bytes_now = math.max(bytes_now, 0)
  -- A namespace over its quota can still shrink.
  if bytes_now > quota_bytes and bytes_now > bytes then return {'bytes'} end
  if count_now > quota_keys and count_now > count then return {'keys'} end
  if #entries == 0 then return nil end
  for _, pair in ipairs(entries) do
    revision = revision + 1
    redis.call('HSET', values, pair[1], string.format('%016.0f', revision) .. pair[2])
    redis.call('ZADD', names, 0, pair[1])
  end
  redis.call('HSET', usage, 'bytes', string.format('%.0f', bytes_now), 'revision', string.format('%.0f', revision))
  if known == 0 then redis.call('SADD', index, member) end
  return nil
end

if op == 'set' then
  local entries = {}
  for at = 7, #ARGV, 2 do entries[#entries + 1] = {ARGV[at], ARGV[at + 1]} end
  return set(entries) or {'done'}
end

if op == 'delete' then
  local freed, removed = 0, false
  for at = 7, #ARGV do
    local field = ARGV[at]
    if redis.call('HEXISTS', values, field) == 1 then
      freed = freed + #field - 1 + key_cost + math.max(redis.call('HSTRLEN', values, field) - 16, 0)
      redis.call('HDEL', values, field)
      removed = true
    end
    redis.call('ZREM', names, field)
  end
  -- Deletions come first: Redis lets a script go on that has begun to write, also where its memory is used up.
  if removed then redis.call('HSET', usage, 'bytes', string.format('%.0f', math.max(bytes - freed, 0))) end
  return {'done'}
end

local field = ARGV[7]
local now = false
if redis.call('HSTRLEN', values, field) > value_max then return {'foreign'} end
now = redis.call('HGET', values, field)
if now and #now < 16 then return {'foreign'} end

if op == 'swap' then
  local seen = ''
  if now then seen = string.sub(now, 1, 16) end
  if seen ~= ARGV[8] then return {'stale', now} end
  return set({{field, ARGV[9]}}) or {'done'}
end

-- An increment: Redis adds, since numbers of Lua have 53 bits. 19 digits at most, and no zeros in front.
local text = '0'
if now then
  local sign, digits = string.match(string.sub(now, 17), '^([+-]?)(%d+)$')
  if not digits then return {'nonumber'} end
  digits = string.gsub(digits, '^0+(%d)', '%1')
  if #digits > 19 then return {'nonumber'} end
  if sign ~= '-' or digits == '0' then sign = '' end
  text = sign .. digits
end
redis.call('HSET', usage, 'sum', text)
local valid = redis.pcall('HINCRBY', usage, 'sum', 0)
local added = valid
if type(valid) ~= 'table' then added = redis.pcall('HINCRBY', usage, 'sum', ARGV[8]) end
local sum = redis.call('HGET', usage, 'sum')
redis.call('HDEL', usage, 'sum')
if type(valid) == 'table' then return {'nonumber'} end
if type(added) == 'table' then return {'overflow'} end
return set({{field, sum}}) or {'number', sum}

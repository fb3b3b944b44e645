-- A page of the namespaces that have data, for one collector of all nodes at a time. KEYS: index of namespaces, turn, cursor.
-- ARGV: milliseconds of a turn, maximum bytes of a name.
if not redis.call('SET', KEYS[2], '1', 'NX', 'PX', ARGV[1]) then return {} end
local cursor = redis.call('GET', KEYS[3]) or '0'
if not string.match(cursor, '^%d+$') then cursor = '0' end
local page = redis.call('SSCAN', KEYS[1], cursor, 'COUNT', 500)
redis.call('SET', KEYS[3], page[1])
local names = {}
for _, name in ipairs(page[2]) do
  if #name <= tonumber(ARGV[2]) and #names < 2000 then names[#names + 1] = name end
end
return names

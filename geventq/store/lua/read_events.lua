-- What the stream tells after an entry, and what became of the entries between (wire-format 6).
--
-- KEYS   events
-- ARGV   1 id of the last entry seen, '$' = read none  2 how many at most
-- Reply  entries {id, {field, value, ...}}, as many as fit into a call; id of the newest entry
--        there ever was, id of the oldest that is kept ('' if none is), how many are kept, how many
--        were ever added (-1 = unknown: Redis before 7.0)
-- Events none
--- include: fitting

local info = redis.pcall('XINFO', 'STREAM', keys.events)
if info.err then
  if not string.find(info.err, 'no such key', 1, true) then
    return info
  end
  return { {}, '0-0', '', 0, 0 }
end
local stream = {}
for i = 1, #info, 2 do
  stream[info[i]] = info[i + 1]
end

local entries, last, most, bytes = {}, ARGV[1], tonumber(ARGV[2]), 0
while #entries < most and bytes < MOST_BYTES do
  local count = fitting(#entries, bytes, most)
  local read = redis.call('XREAD', 'COUNT', count, 'STREAMS', keys.events, last)
  local some = read and read[1][2] or {}
  for _, entry in ipairs(some) do
    entries[#entries + 1] = entry
    bytes = bytes + size_of(entry[2])
  end
  if #some < count then
    break
  end
  last = some[count][1]
end
local first = stream['first-entry']
return {
  entries, stream['last-generated-id'], first and first[1] or '',
  stream['length'], stream['entries-added'] or -1,
}

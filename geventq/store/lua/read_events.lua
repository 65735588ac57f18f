-- What the stream tells after an entry, and what became of the entries between (wire-format 6).
--
-- KEYS   events
-- ARGV   1 id of the last entry seen, '$' = read none  2 how many at most
-- Reply  entries {id, {field, value, ...}}, id of the newest entry there ever was, id of the oldest
--        that is kept ('' if none is), how many are kept, how many were ever added (-1 = unknown:
--        Redis before 7.0)
-- Events none

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
local read = redis.call('XREAD', 'COUNT', ARGV[2], 'STREAMS', keys.events, ARGV[1])
local first = stream['first-entry']
return {
  read and read[1][2] or {}, stream['last-generated-id'], first and first[1] or '',
  stream['length'], stream['entries-added'] or -1,
}

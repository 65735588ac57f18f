-- The workers whose heartbeat is fresh, and how many jobs each of them holds (cancellation.md
-- 5.7).  The jobs are counted by their lock tokens, which costs the workers nothing.
--
-- KEYS   workers active
-- Also   <id> :lock gq:
-- ARGV   1 key base  2 ms after which a heartbeat is stale  3 active jobs that are counted at most
--        4 the heartbeat to go on with, '' at first  5 how many with that one were told of before
-- Reply  {the server's time in ms, for each worker {its id, how many jobs or -1 where there are too
--        many to count, fields and values of what it told}, the heartbeat to go on with, '' = that
--        is all, how many with that one were told of}
-- Events none
--- include: bound
--- include: listener

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local counts = {}
local is_counted = redis.call('LLEN', keys.active) <= tonumber(ARGV[3])
local active = is_counted and redis.call('LRANGE', keys.active, 0, -1) or {}
for first = 1, #active, 1000 do
  local locks = {}
  for n = first, math.min(first + 999, #active) do
    locks[#locks + 1] = ARGV[1] .. active[n] .. ':lock'
  end
  for _, holder in ipairs(redis.call('MGET', unpack(locks))) do
    local worker = holder and string.match(holder, LISTENER)
    if worker then
      counts[worker] = (counts[worker] or 0) + 1
    end
  end
end
local members = {}
local from = ARGV[4] ~= '' and ARGV[4] or now - ARGV[2]
local found = redis.call('ZRANGE', keys.workers, from, '+inf', 'BYSCORE', 'LIMIT', ARGV[5], MOST,
  'WITHSCORES')
for n = 1, #found, 2 do
  local told = redis.pcall('HGETALL', ARGV[1] .. 'gq:worker:' .. found[n])
  if not told.err and #told > 0 then
    members[#members + 1] = { found[n], is_counted and (counts[found[n]] or 0) or -1, told }
  end
end
local last, same = '', 0
if #found == 2 * MOST then
  last = found[#found]
  for n = #found, 2, -2 do
    same = same + (found[n] == last and 1 or 0)
  end
  if last == ARGV[4] then
    same = same + ARGV[5]
  end
end
return { now, members, last, same }

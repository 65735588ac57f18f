-- The workers whose heartbeat is fresh, and how many jobs each of them holds (cancellation.md
-- 5.7).  The jobs are counted by their lock tokens, which costs the workers nothing.
--
-- KEYS   workers active
-- Also   <id> :lock gq:
-- ARGV   1 key base  2 ms after which a heartbeat is stale  3 active jobs that are counted at most
-- Reply  {the server's time in ms, for each worker {its id, how many jobs or -1 where there are too
--        many to count, fields and values of what it told}}
-- Events none

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
    local worker = holder and string.match(holder, '^gq:(.+):%d+$')
    if worker then
      counts[worker] = (counts[worker] or 0) + 1
    end
  end
end
local members = {}
for _, id in ipairs(redis.call('ZRANGE', keys.workers, now - ARGV[2], '+inf', 'BYSCORE')) do
  local told = redis.pcall('HGETALL', ARGV[1] .. 'gq:worker:' .. id)
  if not told.err and #told > 0 then
    members[#members + 1] = { id, is_counted and (counts[id] or 0) or -1, told }
  end
end
return { now, members }

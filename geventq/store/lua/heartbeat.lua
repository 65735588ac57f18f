-- A worker says that it lives (cancellation.md 5.7).  Those that said nothing for too long are
-- forgotten: by this server's clock alone, whatever those of the workers show.  A worker with a secret
-- says so in `meta`, each time anew: an obliterate takes it away (cancellation.md 8).
--
-- KEYS   workers member meta
-- ARGV   1 worker id  2 ms after which a heartbeat is stale
--        3 what the secrets are told by that it believes, '' = it has none
--        4... fields and values of what it tells about itself
-- Reply  the server's time in ms
-- Events none
--- include: bound
--- include: types

local wrong = wrong_type(keys)
if wrong then
  return wrong
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local stale = redis.call('ZRANGE', keys.workers, '-inf', now - ARGV[2], 'BYSCORE', 'LIMIT', 0, MOST)
-- First: a full Redis refuses ZADD as the first write.
redis.call('ZREM', keys.workers, ARGV[1], unpack(stale))
redis.call('ZADD', keys.workers, now, ARGV[1])
redis.call('PEXPIRE', keys.workers, ARGV[2])
redis.call('HSET', keys.member, unpack(ARGV, 4, #ARGV))
redis.call('PEXPIRE', keys.member, ARGV[2])
if ARGV[3] ~= '' then
  redis.call('HSET', keys.meta, 'gqs', ARGV[3])
end
return now

-- The jobs that have not ended, at one moment: none of them is between two places
-- (cancellation.md 4.2).
--
-- KEYS   wait paused prioritized delayed waiting_children active
-- ARGV   1 how many ids of each at most; the newest
-- Reply  a list of ids for each of KEYS
-- Events none

local last = tonumber(ARGV[1]) - 1
return {
  redis.call('LRANGE', keys.wait, 0, last), redis.call('LRANGE', keys.paused, 0, last),
  redis.call('ZREVRANGE', keys.prioritized, 0, last), redis.call('ZREVRANGE', keys.delayed, 0, last),
  redis.call('ZREVRANGE', keys.waiting_children, 0, last), redis.call('LRANGE', keys.active, 0, last),
}

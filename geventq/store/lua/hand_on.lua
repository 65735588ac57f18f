-- A worker stops waiting: a wake-up that it may have taken is put back for the others
-- (wire-format 18, marker duty).
--
-- KEYS   1 wait  2 prioritized  3 marker  4 meta  5 active
-- ARGV   none
-- Reply  1 put back, 0 nobody needs it
-- Events none
-- key count: 5
--- include: meta

if redis.call('LLEN', KEYS[1]) + redis.call('ZCARD', KEYS[2]) == 0 or is_blocked(KEYS[4], KEYS[5]) then
  return 0
end
redis.call('ZADD', KEYS[3], 0, '0')
return 1

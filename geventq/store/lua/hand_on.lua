-- A worker stops waiting: a wake-up that it may have taken is put back for the others
-- (wire-format 18, marker duty).
--
-- KEYS   wait prioritized marker meta active
-- ARGV   none
-- Reply  1 put back, 0 nobody needs it
-- Events none
--- include: meta

if redis.call('LLEN', keys.wait) + redis.call('ZCARD', keys.prioritized) == 0 or is_blocked(keys) then
  return 0
end
redis.call('ZADD', keys.marker, 0, '0')
return 1

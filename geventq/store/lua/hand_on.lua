-- A worker that was woken does not look, or not before a job is due, and may be dead by then: a marker
-- is put back for the others, for what waits now or for the next delayed job (wire-format 7, 18, marker
-- duty).
--
-- KEYS   wait prioritized delayed marker meta active
-- ARGV   1 the marker of the delayed job, '1' if it is left out
-- Reply  1 put back, 0 nobody needs it
-- Events none
--- include: place
--- include: types

local wrong = wrong_type(keys)
if wrong then
  return wrong
end
redis.call('ZREM', keys.marker, '0') -- a full Redis refuses ZADD as the first write
if redis.call('LLEN', keys.wait) + redis.call('ZCARD', keys.prioritized) > 0 and not is_blocked(keys) then
  wake(keys)
  return 1
end
return mark_next_delayed(keys, ARGV[1]) and 1 or 0

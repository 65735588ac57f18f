-- Let no worker take jobs of this queue (wire-format 9.11).
--
-- KEYS   meta marker events
-- ARGV   none
-- Reply  0
-- Events paused
--- include: types

local wrong = wrong_type(keys)
if wrong then
  return wrong
end
redis.call('DEL', keys.marker) -- first: a full Redis refuses HSET as the first write
redis.call('HSET', keys.meta, 'paused', 1)
redis.call('XADD', keys.events, '*', 'event', 'paused')
return 0

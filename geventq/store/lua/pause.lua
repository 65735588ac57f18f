-- Let no worker take jobs of this queue (wire-format 9.11).
--
-- KEYS   meta marker events
-- ARGV   none
-- Reply  0
-- Events paused

redis.call('HSET', keys.meta, 'paused', 1)
redis.call('DEL', keys.marker)
redis.call('XADD', keys.events, '*', 'event', 'paused')
return 0

-- Let no worker take jobs of this queue (wire-format 9.11).
--
-- KEYS   1 meta  2 marker  3 events
-- ARGV   none
-- Reply  0
-- Events paused
-- key count: 3

redis.call('HSET', KEYS[1], 'paused', 1)
redis.call('DEL', KEYS[2])
redis.call('XADD', KEYS[3], '*', 'event', 'paused')
return 0

-- Let workers take jobs again (wire-format 9.11); a `paused` list of version 5 is merged.
--
-- KEYS   1 meta  2 marker  3 events  4 paused  5 wait  6 prioritized  7 delayed
-- ARGV   '1' = this is the first call of a resume
-- Reply  how many ids are left in `paused`: call again until 0
-- Events resumed, once
-- key count: 7
--- include: place

redis.call('HDEL', KEYS[1], 'paused')
if redis.call('EXISTS', KEYS[4]) == 1 then
  if redis.call('EXISTS', KEYS[5]) == 0 then
    redis.call('RENAME', KEYS[4], KEYS[5])
  else
    redis.call('RPUSH', KEYS[5], unpack(redis.call('LRANGE', KEYS[4], 0, 6999)))
    redis.call('LTRIM', KEYS[4], 7000, -1)
  end
end
if redis.call('LLEN', KEYS[5]) + redis.call('ZCARD', KEYS[6]) > 0 then
  wake(KEYS[2], false)
else
  mark_next_delayed(KEYS[7], KEYS[2])
end
if ARGV[1] == '1' then
  redis.call('XADD', KEYS[3], '*', 'event', 'resumed')
end
return redis.call('LLEN', KEYS[4])

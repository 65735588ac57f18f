-- Let delayed jobs run now, up to 1,000 a call (wire-format 9.12).  As BullMQ does it, they all
-- go to wait, whatever their priority, and keep their `delay` field.
--
-- KEYS   1 delayed  2 wait  3 marker  4 meta  5 active  6 events
-- ARGV   1 how many at most
-- Reply  how many went: call again while it is the most
-- Events waiting
-- key count: 6
--- include: meta
--- include: place

local ids = redis.call('ZRANGE', KEYS[1], 0, ARGV[1] - 1)
if #ids == 0 then
  return 0
end
local length = max_len(KEYS[4])
for _, job_id in ipairs(ids) do
  redis.call('XADD', KEYS[6], 'MAXLEN', '~', length, '*', 'event', 'waiting', 'jobId', job_id,
    'prev', 'delayed')
end
redis.call('LPUSH', KEYS[2], unpack(ids)) -- first: of a foreign type, it stops the script
redis.call('ZREM', KEYS[1], unpack(ids))
wake(KEYS[3], is_blocked(KEYS[4], KEYS[5]))
return #ids

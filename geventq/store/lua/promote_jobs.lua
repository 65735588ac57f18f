-- Let delayed jobs run now, up to 1,000 a call (wire-format 9.12).  As BullMQ does it, they all
-- go to wait, whatever their priority, and keep their `delay` field.
--
-- KEYS   delayed wait marker meta active events
-- ARGV   1 how many at most
-- Reply  how many went: call again while it is the most
-- Events waiting
--- include: place

local ids = redis.call('ZRANGE', keys.delayed, 0, ARGV[1] - 1)
if #ids == 0 then
  return 0
end
local length = max_len(keys)
for _, job_id in ipairs(ids) do
  redis.call('XADD', keys.events, 'MAXLEN', '~', length, '*', 'event', 'waiting', 'jobId', job_id,
    'prev', 'delayed')
end
redis.call('LPUSH', keys.wait, unpack(ids)) -- first: of a foreign type, it stops the script
redis.call('ZREM', keys.delayed, unpack(ids))
wake_unless_blocked(keys)
return #ids

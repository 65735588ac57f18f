-- Run finished jobs again, up to 1,000 a call (wire-format 9.18): those that ended until a given
-- moment, the oldest first.  As BullMQ does it, they all go to wait, whatever their priority.
-- Recorded requests were for their earlier runs (cancellation.md 4.4).
--
-- KEYS   completed failed wait marker meta active events
-- ARGV   1 key base  2 'failed' or 'completed'  3 ms of the last end  4 how many at most
-- Reply  how many went: call again while it is the most
-- Events waiting
--- include: place
--- include: again

local ended_key = ARGV[2] == 'failed' and keys.failed or keys.completed
local ids = redis.call('ZRANGEBYSCORE', ended_key, 0, ARGV[3], 'LIMIT', 0, ARGV[4])
if #ids == 0 then
  return 0
end
local length = max_len(keys)
for _, job_id in ipairs(ids) do
  clear_end(ARGV[1] .. job_id, ARGV[2])
  redis.call('XADD', keys.events, 'MAXLEN', '~', length, '*', 'event', 'waiting', 'jobId', job_id,
    'prev', ARGV[2])
end
redis.call('LPUSH', keys.wait, unpack(ids)) -- first: of a foreign type, it stops the script
redis.call('ZREM', ended_key, unpack(ids))
wake_unless_blocked(keys)
return #ids

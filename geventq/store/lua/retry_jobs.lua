-- Run finished jobs again, up to 1,000 a call (wire-format 9.18): those that ended until a given
-- moment, the oldest first.  As BullMQ does it, they all go to wait, whatever their priority.
-- Recorded requests were for their earlier runs (cancellation.md 4.4).
--
-- KEYS   1 the set they are in (completed or failed)  2 wait  3 marker  4 meta  5 active
--        6 events
-- ARGV   1 key base  2 'failed' or 'completed'  3 ms of the last end  4 how many at most
-- Reply  how many went: call again while it is the most
-- Events waiting
-- key count: 6
--- include: meta
--- include: place
--- include: again

local ids = redis.call('ZRANGEBYSCORE', KEYS[1], 0, ARGV[3], 'LIMIT', 0, ARGV[4])
if #ids == 0 then
  return 0
end
local length = max_len(KEYS[4])
for _, job_id in ipairs(ids) do
  clear_end(ARGV[1] .. job_id, ARGV[2])
  redis.call('XADD', KEYS[6], 'MAXLEN', '~', length, '*', 'event', 'waiting', 'jobId', job_id,
    'prev', ARGV[2])
end
redis.call('LPUSH', KEYS[2], unpack(ids)) -- first: of a foreign type, it stops the script
redis.call('ZREM', KEYS[1], unpack(ids))
wake(KEYS[3], is_blocked(KEYS[4], KEYS[5]))
return #ids

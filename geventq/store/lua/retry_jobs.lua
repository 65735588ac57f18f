-- Run finished jobs again (wire-format 9.18): those that ended until a given moment, the oldest
-- first.  As BullMQ does it, they all go to wait, whatever their priority.  Recorded requests were
-- for their earlier runs (cancellation.md 4.4).
--
-- KEYS   completed failed wait marker meta active events
-- Also   <id>
-- ARGV   1 key base  2 'failed' or 'completed'  3 ms of the last end
-- Reply  {how many went, 1 if there may be more: call again}
-- Events waiting
--- include: again
--- include: bound
--- include: place
--- include: types

local wrong = wrong_type(keys)
if wrong then
  return wrong
end
local ended_key = ARGV[2] == 'failed' and keys.failed or keys.completed
local ids = redis.call('ZRANGEBYSCORE', ended_key, 0, ARGV[3], 'LIMIT', 0, MOST)
if #ids > 0 then
  redis.call('ZREM', ended_key, unpack(ids))
  redis.call('LPUSH', keys.wait, unpack(ids))
  local length = max_len(keys)
  for _, job_id in ipairs(ids) do
    clear_end(ARGV[1] .. job_id, ARGV[2])
    redis.call('XADD', keys.events, 'MAXLEN', '~', length, '*', 'event', 'waiting',
      'jobId', job_id, 'prev', ARGV[2])
  end
  wake_unless_blocked(keys)
end
return { #ids, #ids == MOST and 1 or 0 }

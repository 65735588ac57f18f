-- Move what is due from delayed to wait or prioritized, at most 1,000 (wire-format 8.9).  An id
-- without a hash goes to wait: whoever takes it tells of it.
local function promote_due(keys, now_ms, blocked)
  --- include: job
  --- include: place
  --- include: reserved
  local due = redis.call('ZRANGEBYSCORE', keys.delayed, '-inf', (now_ms + 1) * DELAY_STEP - 1,
    'LIMIT', '0', '1000')
  if #due == 0 then
    return
  end
  redis.call('ZREM', keys.delayed, unpack(due))
  for _, job_id in ipairs(due) do
    local job_key = keys.base .. job_id
    local found = redis.pcall('HGET', job_key, 'priority')
    enqueue(keys, job_id, priority_in(found))
    redis.call('XADD', keys.events, '*', 'event', 'waiting', 'jobId', job_id, 'prev', 'delayed')
    if (type(found) == 'string' or is_job(job_key)) and not is_queue_key(job_id) then
      redis.call('HSET', job_key, 'delay', '0')
    end
  end
  if not blocked then
    wake(keys)
  end
end

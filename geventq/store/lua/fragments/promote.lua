--- include: place

-- Move what is due from delayed to wait or prioritized, at most 1,000 (wire-format 8.9).
-- `keys` names base, delayed, wait, prioritized, pc, marker and events.
local function promote_due(keys, now_ms, blocked)
  local due = redis.call('ZRANGEBYSCORE', keys.delayed, 0, (now_ms + 1) * DELAY_STEP - 1,
    'LIMIT', 0, 1000)
  if #due == 0 then
    return
  end
  redis.call('ZREM', keys.delayed, unpack(due))
  for _, job_id in ipairs(due) do
    local job_key = keys.base .. job_id
    local priority = tonumber(redis.call('HGET', job_key, 'priority') or 0) or 0
    if priority > 0 then
      push_prioritized(keys.prioritized, keys.pc, job_id, priority)
    else
      redis.call('LPUSH', keys.wait, job_id)
    end
    redis.call('XADD', keys.events, '*', 'event', 'waiting', 'jobId', job_id, 'prev', 'delayed')
    redis.call('HSET', job_key, 'delay', 0)
  end
  wake(keys.marker, blocked)
end

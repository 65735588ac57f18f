--- include: reserved
--- include: utf8

-- Why an id cannot be taken, or nil.
local function why_not(keys, job_id, fields, now_ms)
  if fields.err then
    return fields.err
  elseif #fields == 0 then
    return 'the job has no hash'
  elseif is_queue_key(job_id) then
    return "the id is the name of a key of the queue"
  elseif is_utf8(job_id) then
    return nil
  end
  -- A job whose id no Python text can hold would come back for ever: it fails, unrun.
  local why = 'the id is not UTF-8 text'
  redis.call('HSET', keys.base .. job_id, 'failedReason', why, 'finishedOn', now_ms)
  redis.call('ZADD', keys.failed, now_ms, job_id)
  redis.call('XADD', keys.events, '*', 'event', 'failed', 'jobId', job_id, 'failedReason', why,
    'prev', 'active')
  return why
end

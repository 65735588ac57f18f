--- include: remember

-- Taking back a job's end, so that it can run again (wire-format 9.18; cancellation.md 4.4): a
-- recorded request, and the deferred failure that came with it, were for its earlier runs, and so
-- were its stalls.  What is no hash is left alone: whoever takes the id tells of it.
local function clear_end(job_key, state)
  redis.pcall('HDEL', job_key, 'finishedOn', 'processedOn', 'stc',
    state == 'failed' and 'failedReason' or 'returnvalue')
  for _, field in ipairs({ 'gqe', 'gqc' }) do
    local asked = redis.pcall('HGET', job_key, field)
    if type(asked) == 'string' then
      redis.call('HDEL', job_key, field)
      remember(job_key, asked)
      if field == 'gqc' then
        redis.call('HDEL', job_key, 'defa')
      end
    end
  end
end

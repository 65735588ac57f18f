--- include: remember

-- The recorded request was answered (cancellation.md 4.4).  Of one that ended the job for good it is
-- shown, all else is only remembered: one that was for this run alone has ended nothing else, whoever
-- did.
local function clear_request(job_key, more)
  local asked = redis.call('HMGET', job_key, 'gqc', 'gqe')
  redis.call('HDEL', job_key, 'gqc', 'defa')
  if not asked[1] then
    return
  end
  local read, told = pcall(cjson.decode, asked[1])
  if more.shown and read and type(told) == 'table' and told.retry == false then
    redis.call('HSET', job_key, 'gqe', asked[1])
    if asked[2] then
      remember(job_key, asked[2])
    end
  else
    remember(job_key, asked[1])
  end
end

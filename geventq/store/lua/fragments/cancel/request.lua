-- A request to cancel, as it is kept with a job, as others are told of it, and as it is counted.

-- The request as it is kept with a job; `more` are members, as JSON.
local function record_for(job, more)
  return string.sub(ARGV[3], 1, -2)
    .. string.format(',"atm":%.0f,"ts":%.0f,"at":%.0f,"state":"%s","nonces":["%s"]', job.made,
      job.timestamp, at_ms, job.state, nonce)
    .. (more or '') .. '}'
end

local function message_for(job)
  if job.signed ~= '' then
    return job.signed
  end
  return '{"queue":' .. ARGV[5] .. ',"jobId":' .. cjson.encode(job.id)
    .. string.format(',"atm":%.0f,"ts":%.0f,"at":%.0f,', job.made, job.timestamp, at_ms)
    .. ARGV[6] .. '}'
end

local counted = false
-- Raised by every request, at least to the clock: no value comes back after an obliterate.
local function count_request()
  if not counted then
    counted = true
    redis.call('HSET', keys.meta, 'gqn', string.format('%.0f', math.max(requests + 1, now_us)))
  end
end

--- include: record

-- Requests that were answered: a call of one that comes again is known by it, whatever the job does by
-- then (cancellation.md 3.6, 4.3).  Field `gqa`, JSON: pairs of a request's nonce and the state that it
-- found the job in, the newest last.
local MOST_ANSWERED = 16

local function remember(job_key, record)
  local asked, answered = record_in(record), {}
  for _, pair in ipairs(last_of(record_in(redis.call('HGET', job_key, 'gqa')), MOST_ANSWERED)) do
    if type(pair) == 'table' and type(pair[1]) == 'string' and type(pair[2]) == 'string' then
      answered[#answered + 1] = { pair[1], pair[2] }
    end
  end
  for _, nonce in ipairs(last_texts(asked.nonces, MOST_ANSWERED)) do
    -- A worker's own record names no state.
    answered[#answered + 1] = { nonce, type(asked.state) == 'string' and asked.state or 'active' }
  end
  if #answered > 0 then
    redis.call('HSET', job_key, 'gqa', cjson.encode(last_of(answered, MOST_ANSWERED)))
  end
end

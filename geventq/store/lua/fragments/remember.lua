-- Requests that were answered: a call of one that comes again is known by it, whatever the job does by
-- then (cancellation.md 3.6, 4.3).  Field `gqa`, JSON: pairs of a request's nonce and the state that it
-- found the job in, the newest last.
local MOST_ANSWERED = 16

local function remember(job_key, record)
  local read, asked = pcall(cjson.decode, record)
  if not read or type(asked) ~= 'table' or type(asked.nonces) ~= 'table' then
    return
  end
  local known, answered = pcall(cjson.decode, redis.call('HGET', job_key, 'gqa') or '[]')
  if not known or type(answered) ~= 'table' then
    answered = {}
  end
  for _, nonce in ipairs(asked.nonces) do
    -- A worker's own record names no state.
    answered[#answered + 1] = { nonce, type(asked.state) == 'string' and asked.state or 'active' }
  end
  while #answered > MOST_ANSWERED do
    table.remove(answered, 1)
  end
  if #answered > 0 then
    redis.call('HSET', job_key, 'gqa', cjson.encode(answered))
  end
end

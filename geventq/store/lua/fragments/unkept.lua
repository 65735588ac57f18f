-- A job that is not kept has answered requests: a call of one that comes again is told the same as
-- the first (cancellation.md 4.3).
local function keep_answers(keys, job_id, nonces)
  for _, nonce in ipairs(nonces) do
    if nonce ~= '*' then -- of a record that cannot be read
      local answers = keys.base .. 'gq:answer:' .. nonce
      redis.pcall('HSET', answers, job_id, '{"status":"requested","state":"active"}')
      redis.call('PEXPIRE', answers, 60000)
    end
  end
end

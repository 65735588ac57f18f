-- How jobs ended, if they have, and the newest entry of the stream at that moment (wire-format 12).
--
-- KEYS   completed failed events
-- Also   <id>
-- ARGV   1 key base  2... job ids
-- Reply  id of the newest entry, then {state, what it tells, the job's timestamp} for each job; the
--        state is `completed` and tells the result as JSON, `failed` and tells the reason, `open` and
--        tells the attempts made, or `missing`; or `later`: the reply is full, ask again
-- Events none
--- include: fitting
--- include: job

local newest = redis.call('XREVRANGE', keys.events, '+', '-', 'COUNT', 1)
local bytes = 0
local answers = { newest[1] and newest[1][1] or '0-0' }
for i = 2, #ARGV do
  local job_key = ARGV[1] .. ARGV[i]
  local state, told, timestamp = 'missing', '', ''
  if bytes >= MOST_BYTES then
    state = 'later'
  elseif is_job(job_key) then
    state, timestamp = 'open', redis.call('HGET', job_key, 'timestamp') or ''
    told = redis.call('HGET', job_key, 'attemptsMade') or redis.call('HGET', job_key, 'atm') or '0'
    if redis.call('ZSCORE', keys.completed, ARGV[i]) then
      state, told = 'completed', redis.call('HGET', job_key, 'returnvalue') or 'null'
    elseif redis.call('ZSCORE', keys.failed, ARGV[i]) then
      state, told = 'failed', redis.call('HGET', job_key, 'failedReason') or ''
    end
  end
  bytes = bytes + #told
  answers[i] = { state, told, timestamp }
end
return answers

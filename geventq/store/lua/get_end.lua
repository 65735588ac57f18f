-- How a job ended, if it has, and the newest entry of the stream at that moment (wire-format 12).
--
-- KEYS   1 job hash  2 completed  3 failed  4 events
-- ARGV   1 job id
-- Reply  {state, what it tells, id of the newest entry}; the state is `completed` and tells the
--        result as JSON, `failed` and tells the reason, `open`, or `missing`
-- Events none
-- key count: 4
--- include: job

local state, told = 'open', ''
if not is_job(KEYS[1]) then
  state = 'missing'
elseif redis.call('ZSCORE', KEYS[2], ARGV[1]) then
  state, told = 'completed', redis.call('HGET', KEYS[1], 'returnvalue') or 'null'
elseif redis.call('ZSCORE', KEYS[3], ARGV[1]) then
  state, told = 'failed', redis.call('HGET', KEYS[1], 'failedReason') or ''
end
local newest = redis.call('XREVRANGE', KEYS[4], '+', '-', 'COUNT', 1)
return { state, told, newest[1] and newest[1][1] or '0-0' }

-- How a job ended, if it has (wire-format 12).
--
-- KEYS   1 job hash  2 completed  3 failed
-- ARGV   1 job id
-- Reply  {'completed', result JSON} | {'failed', reason} | {'missing'} | {'open'}
-- Events none
-- key count: 3

if redis.call('EXISTS', KEYS[1]) == 0 then
  return { 'missing' }
end
if redis.call('ZSCORE', KEYS[2], ARGV[1]) then
  return { 'completed', redis.call('HGET', KEYS[1], 'returnvalue') or 'null' }
end
if redis.call('ZSCORE', KEYS[3], ARGV[1]) then
  return { 'failed', redis.call('HGET', KEYS[1], 'failedReason') or '' }
end
return { 'open' }

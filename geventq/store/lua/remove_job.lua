-- Remove a job from wherever it is, unless it runs (wire-format 9.14, without children).
--
-- KEYS   1 job hash  2 completed  3 waiting-children  4 delayed  5 failed  6 prioritized  7 wait
--        8 paused  9 active  10 events  11 meta  12 its lock  13 repeat
-- ARGV   1 job id  2 key base
-- Reply  1 it is gone, 0 it is locked, -8 it is a scheduler's pending job
-- Events removed
-- key count: 13
--- include: meta
--- include: remove

local job_id = ARGV[1]
local scheduler = redis.call('HGET', KEYS[1], 'rjk')
if scheduler then
  local next_ms = redis.call('ZSCORE', KEYS[13], scheduler)
  if next_ms and job_id == 'repeat:' .. scheduler .. ':' .. next_ms then
    return -8
  end
end
if redis.call('EXISTS', KEYS[12]) == 1 then
  return 0
end
local places = {
  { 2, 'completed', true }, { 3, 'waiting-children', true }, { 4, 'delayed', true },
  { 5, 'failed', true }, { 6, 'prioritized', true }, { 7, 'wait' }, { 8, 'paused' },
  { 9, 'active' },
}
local state = 'unknown'
for _, place in ipairs(places) do
  local removed
  if place[3] then
    removed = redis.call('ZREM', KEYS[place[1]], job_id)
  else
    removed = redis.call('LREM', KEYS[place[1]], 0, job_id)
  end
  if removed > 0 then
    state = place[2]
    break
  end
end
local owned = redis.call('HGET', KEYS[1], 'deid')
if owned and redis.call('GET', ARGV[2] .. 'de:' .. owned) == job_id then
  redis.call('DEL', ARGV[2] .. 'de:' .. owned, ARGV[2] .. 'dn:' .. owned)
end
if delete_job_keys(KEYS[1]) > 0 then
  redis.call('XADD', KEYS[10], 'MAXLEN', '~', max_len(KEYS[11]), '*', 'event', 'removed',
    'jobId', job_id, 'prev', state)
end
return 1

-- Bring back jobs that are active without a lock, and suspect those that are active now
-- (wire-format 9.9).  At most one check an interval, whichever worker makes it.
--
-- KEYS   stalled stalled_check wait active meta marker events
-- ARGV   1 key base  2 now in ms  3 interval in ms  4 how often a job may stall
-- Reply  ids of the jobs that went back to wait
-- Events waiting, stalled
--- include: job
--- include: place
--- include: types

-- Half-way, a job would be in no list any more (cancellation.md 3.7).
local wrong = wrong_type({
  { keys.stalled, 'set' }, { keys.wait, 'list' }, { keys.active, 'list' },
  { keys.meta, 'hash' }, { keys.marker, 'zset' }, { keys.events, 'stream' },
})
if wrong then
  return wrong
end
if redis.call('EXISTS', keys.stalled_check) == 1 then
  return {}
end
redis.call('SET', keys.stalled_check, ARGV[2], 'PX', ARGV[3])
redis.call('XTRIM', keys.events, 'MAXLEN', '~', max_len(keys))

-- A live scheduler's job may stall for ever: its schedule hangs on it.
local function is_scheduled(job_key)
  local scheduler = redis.call('HGET', job_key, 'rjk')
  return scheduler and (redis.call('EXISTS', ARGV[1] .. 'repeat:' .. scheduler) == 1
    or redis.call('ZSCORE', ARGV[1] .. 'repeat', scheduler) ~= false)
end

local recovered = {}
local suspects = redis.call('SMEMBERS', keys.stalled)
if #suspects > 0 then
  redis.call('DEL', keys.stalled)
end
for _, job_id in ipairs(suspects) do
  local job_key = ARGV[1] .. job_id
  if redis.call('EXISTS', job_key .. ':lock') == 0
    and redis.call('LREM', keys.active, 1, job_id) > 0 then
    if is_job(job_key) then -- else whoever takes the id tells of it
      local stalls = (tonumber(redis.call('HGET', job_key, 'stc')) or 0) + 1
      redis.call('HSET', job_key, 'stc', stalls)
      if stalls > tonumber(ARGV[4]) and not is_scheduled(job_key) then
        redis.call('HSET', job_key, 'defa', 'job stalled more than allowable limit')
      end
    end
    redis.call('RPUSH', keys.wait, job_id)
    wake_unless_blocked(keys)
    redis.call('XADD', keys.events, '*', 'event', 'waiting', 'jobId', job_id, 'prev', 'active')
    redis.call('XADD', keys.events, '*', 'event', 'stalled', 'jobId', job_id)
    recovered[#recovered + 1] = job_id
  end
end

local active = redis.call('LRANGE', keys.active, 0, -1)
for first = 1, #active, 5000 do
  redis.call('SADD', keys.stalled, unpack(active, first, math.min(first + 4999, #active)))
end
return recovered

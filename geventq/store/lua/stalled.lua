-- Bring back jobs that are active without a lock, and suspect those that are active now
-- (wire-format 9.9).  At most one check an interval, whichever worker makes it.
--
-- Where many jobs are active a check takes several calls, in two rounds: the first looks at the
-- suspects, the second marks new ones.  Each call takes ids off the right end of active and puts
-- those that stay on the left one; so all are met, whatever comes and goes between the calls, and
-- after a round they stand in their order again.
--
-- KEYS   stalled stalled_check wait active schedulers meta marker events
-- Also   <id> :lock repeat:
-- ARGV   1 key base  2 now in ms  3 interval in ms  4 how often a job may stall
--        5 'begin', or the round that the last call answered  6 how many ids it left, 0 at first
-- Reply  {ids of the jobs that went back to wait, the round to go on with or 'done', ids left in it}
-- Events waiting, stalled
--- include: bound
--- include: job
--- include: place
--- include: types
--- include: reserved
--- include: scheduler

keys.base = ARGV[1]
local round, left = ARGV[5], tonumber(ARGV[6])

-- Half-way, a job would be in no list any more (cancellation.md 3.7).
local wrong = wrong_type(keys)
if wrong then
  return wrong
end
if round == 'begin' then
  if redis.call('EXISTS', keys.stalled_check) == 1 then
    return { {}, 'done', 0 }
  end
  round, left = 'look', redis.call('LLEN', keys.active)
end
redis.call('DEL', keys.stalled_check) -- a full Redis refuses SET as the first write
redis.call('SET', keys.stalled_check, ARGV[2], 'PX', ARGV[3])
redis.call('XTRIM', keys.events, 'MAXLEN', '~', max_len(keys))

-- A live scheduler's job may stall for ever.
local function count_stall(job_key)
  local stalls = whole_in(redis.call('HGET', job_key, 'stc')) + 1
  redis.call('HSET', job_key, 'stc', stalls)
  if stalls > tonumber(ARGV[4]) and not is_scheduled(redis.call('HGET', job_key, 'rjk')) then
    redis.call('HSET', job_key, 'defa', 'job stalled more than allowable limit')
  end
end

-- Which of `ids` are suspects without a lock, by id.
local function find_dead(ids)
  local dead, any = {}, false
  for n, is_suspect in ipairs(redis.call('SMISMEMBER', keys.stalled, unpack(ids))) do
    if is_suspect == 1 and redis.call('EXISTS', keys.base .. ids[n] .. ':lock') == 0 then
      dead[ids[n]], any = true, true
    end
  end
  return dead, any
end

-- Moves the dead ones of `ids` to wait, all before anything else is written about them.  The ids
-- come from the right end of active: what was taken first goes last, so that it is the next to run.
local function recover(ids, dead)
  local recovered, staying = {}, {}
  for _, job_id in ipairs(ids) do
    local list = dead[job_id] and recovered or staying
    list[#list + 1] = job_id
  end
  for n = #recovered, 1, -1 do
    redis.call('RPUSH', keys.wait, recovered[n])
  end
  if #staying > 0 then
    redis.call('LPUSH', keys.active, unpack(staying))
  end
  redis.call('SREM', keys.stalled, unpack(recovered))
  for n = #recovered, 1, -1 do
    local job_id = recovered[n]
    if is_job(keys.base .. job_id) and not is_queue_key(job_id) then -- else whoever takes the id tells of it
      count_stall(keys.base .. job_id)
    end
    redis.call('XADD', keys.events, '*', 'event', 'waiting', 'jobId', job_id, 'prev', 'active')
    redis.call('XADD', keys.events, '*', 'event', 'stalled', 'jobId', job_id)
  end
  wake_unless_blocked(keys)
  return recovered
end

-- The next ids of a round, from the right end, which they leave.
local function next_ids()
  local ids = left > 0 and redis.call('RPOP', keys.active, math.min(left, MOST)) or {}
  left = #ids == MOST and left - MOST or 0
  return ids
end

local recovered = {}
if round == 'look' then
  local ids = next_ids()
  if #ids > 0 then
    local dead, any = find_dead(ids)
    if any then
      recovered = recover(ids, dead)
    else
      redis.call('LPUSH', keys.active, unpack(ids))
    end
  end
  if left > 0 then
    return { recovered, 'look', left }
  end
  redis.call('UNLINK', keys.stalled)
  left = redis.call('LLEN', keys.active)
  if left > MOST then
    return { recovered, 'mark', left }
  end
end
local ids = next_ids()
if #ids > 0 then
  redis.call('SADD', keys.stalled, unpack(ids))
  redis.call('LPUSH', keys.active, unpack(ids))
end
return { recovered, left > 0 and 'mark' or 'done', left }

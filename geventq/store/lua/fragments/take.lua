--- include: promote
--- include: utf8

local MOST_DATA = 1048576 -- bytes of all jobs that one call takes, but for the last one

-- Taking up to `room` jobs (wire-format 8.10, 9.4): wait from the right, then prioritized.
-- An id without a readable hash is not taken: it leaves the lists and is named in the reply.

-- Ids, and the scores of those that were in prioritized.
local function pop_ids(keys, room)
  local ids, scores = {}, {}
  while #ids < room do
    local popped = redis.call('RPOP', keys.wait, room - #ids)
    if not popped then
      break
    end
    for _, job_id in ipairs(popped) do
      if string.sub(job_id, 1, 2) ~= '0:' then -- a marker of version 4
        ids[#ids + 1] = job_id
      end
    end
  end
  if #ids < room then
    local popped = redis.call('ZPOPMIN', keys.prioritized, room - #ids)
    if #popped == 0 then
      redis.call('DEL', keys.pc)
    end
    for i = 1, #popped, 2 do
      ids[#ids + 1] = popped[i]
      scores[popped[i]] = popped[i + 1]
    end
  end
  return ids, scores
end

-- Where the ids from `first` on came from (cancellation.md 3.6: what was popped is in no list).
local function put_back(keys, ids, scores, first)
  for n = #ids, first, -1 do
    if scores[ids[n]] then
      redis.call('ZADD', keys.prioritized, scores[ids[n]], ids[n])
    else
      redis.call('RPUSH', keys.wait, ids[n])
    end
  end
end

-- A job whose id no Python text can hold would come back for ever: it fails, unrun.
local function fail_unreadable(keys, job_id, now_ms)
  local why = 'the id is not UTF-8 text'
  redis.call('HSET', keys.base .. job_id, 'failedReason', why, 'finishedOn', now_ms)
  redis.call('ZADD', keys.failed, now_ms, job_id)
  redis.call('XADD', keys.events, '*', 'event', 'failed', 'jobId', job_id, 'failedReason', why,
    'prev', 'active')
  return why
end

-- Why an id is not taken, or nil; and the fields of its hash.
local function read_job(keys, job_id, now)
  local fields = redis.pcall('HGETALL', keys.base .. job_id)
  if fields.err then
    return fields.err
  elseif #fields == 0 then
    return 'the job has no hash'
  elseif not is_utf8(job_id) then
    return fail_unreadable(keys, job_id, now)
  end
  return nil, fields
end

-- How often a job has been started, this time included; and the bytes of its data.
local function starts_and_size(fields)
  local started, size = '1', 0
  for i = 1, #fields, 2 do
    if fields[i] == 'ats' then
      started = string.format('%.0f', (tonumber(fields[i + 1]) or 0) + 1)
    elseif fields[i] == 'data' then
      size = #fields[i + 1]
    end
  end
  return started, size
end

-- Takes `ids` until their data fill a call; the first one always.  `state.at` is the id from which
-- on none was taken, also if this fails.
local function take_each(keys, ids, state, now, lock, worker_name)
  local jobs, broken, taken = state.jobs, state.broken, state.taken
  local filled = 0
  for n = 1, #ids do
    local job_id = ids[n]
    state.at = n
    if filled >= MOST_DATA then
      return
    end
    local why, fields = read_job(keys, job_id, now)
    if why then
      broken[#broken + 1] = { job_id, why }
    else
      local job_key, token = keys.base .. job_id, lock[1]
      if lock[2] then
        token = token .. string.format('%d', lock[2] + #jobs)
      end
      redis.call('SET', job_key .. ':lock', token, 'PX', lock[3])
      state.told = redis.call('XADD', keys.events, '*', 'event', 'active', 'jobId', job_id,
        'prev', 'waiting')
      local started, size = starts_and_size(fields)
      filled = filled + size
      if worker_name == '' then
        redis.call('HSET', job_key, 'processedOn', now, 'ats', started)
      else
        redis.call('HSET', job_key, 'processedOn', now, 'ats', started, 'pb', worker_name)
      end
      taken[#taken + 1] = job_id
      jobs[#jobs + 1] = { job_id, token, fields }
    end
  end
  state.at = #ids + 1
end

-- `lock` is {base, first number or nil, duration in ms}: each job gets a lock token of its own.
-- Answers jobs {id, lock token, fields as they were before the take...}, broken ids {id, why},
-- whether there was more than one call takes, and the id of the last event that tells of them.
local function take_jobs(keys, room, now, lock, worker_name)
  local ids, scores = pop_ids(keys, room)
  local state = { jobs = {}, broken = {}, taken = {}, at = 1 }
  local done, why = pcall(take_each, keys, ids, state, now, lock, worker_name)
  if #state.taken > 0 then
    redis.call('LPUSH', keys.active, unpack(state.taken))
    wake(keys)
  end
  put_back(keys, ids, scores, state.at)
  if not done and #state.jobs + #state.broken == 0 then
    error(why)
  end -- else the next call meets the fault alone
  return state.jobs, state.broken, state.at <= #ids, state.told
end

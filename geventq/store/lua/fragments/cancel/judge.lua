-- Where each job of a cancelling call is, and what that means for it.  A job is a table: what its hash
-- says, its `lock`, `place` (as the keys name it), `state` (as people do) and `status` (as the reply
-- does); nothing is written here.

-- What one command tells of all jobs of the call, once one of them needs it: by their numbers.
local answers_before, locks, scores
local function ids_of_all(before, behind)
  local ids = {}
  for n = 1, count do -- not too many for one command
    ids[n] = before .. ARGV[FIRST + (n - 1) * STRIDE] .. behind
  end
  return unpack(ids)
end

local function lock_of(job)
  locks = locks or redis.call('MGET', ids_of_all(keys.base, ':lock'))
  return locks[job.number]
end

local function read_job(number)
  local at = FIRST + (number - 1) * STRIDE
  local job = { number = number, id = ARGV[at], key = keys.base .. ARGV[at], signed = ARGV[at + 3],
    then_what = ARGV[at + 4] }
  if not string.find(job.id, '^%d+$') then
    --- include: reserved
    if is_queue_key(job.id) then
      job.status = 'not_found'
      return job
    end
  end
  local fields = redis.pcall('HMGET', job.key, 'timestamp', 'atm', 'attemptsMade', 'parentKey',
    'rjk', 'gqc', 'gqe', 'opts', 'priority', 'deid', 'pb', 'gqa', 'defa')
  if not fields[1] then
    --- include: job
    if not is_job(job.key) then
      job.status = redis.call('TYPE', job.key).ok == 'none' and 'not_found' or 'broken'
      return job
    elseif fields.err then
      error(fields)
    end
  end
  job.timestamp, job.made = fields[1] or '', fields[3] or fields[2] or '0'
  job.parent, job.scheduler = fields[4], fields[5]
  job.asked, job.ended, job.answered = fields[6], fields[7], fields[12]
  job.opts, job.priority, job.dedup, job.worker = fields[8], fields[9], fields[10], fields[11]
  job.deferred = fields[13]
  if ARGV[at + 1] ~= '' and (job.timestamp ~= ARGV[at + 1] or job.made ~= ARGV[at + 2]) then
    job.status = 'changed'
  end
  job.timestamp, job.made = whole_in(job.timestamp), whole_in(job.made)
  job.before = job.asked and read_record(job.asked)
  return job
end

local function is_active(job)
  if count > 1 and lengths.active == 0 then
    return false
  end
  visited = visited + lengths.active
  return redis.call('LPOS', keys.active, job.id)
end

-- Where a job is that does not run, as the keys name it.  What is in none of them is searched for in
-- wait as it is removed from it: that is one look less.
local SETS = { 'completed', 'failed', 'delayed', 'prioritized', 'waiting-children' }
local function place_at_rest(job)
  look_at_all()
  if not scores then
    scores = {}
    for n, key in ipairs({ keys.completed, keys.failed, keys.delayed, keys.prioritized,
      keys.waiting_children }) do
      scores[n] = redis.call('ZMSCORE', key, ids_of_all('', ''))
    end
  end
  for n, place in ipairs(SETS) do
    if scores[n][job.number] then
      return place
    end
  end
  return not job.lock and is_active(job) and 'active' or 'wait'
end

-- The answer that a call of this nonce has given, which was lost on the way (cancellation.md 3.6).
local function first_answer(job)
  answers_before = answers_before or redis.call('HMGET', keys.answers, ids_of_all('', ''))
  local answer = answers_before[job.number]
  if answer then
    answer = read_record(answer)
    return answer.status, answer.state
  elseif not (job.ended or job.answered or job.before) then
    return
  end
  local function has(record)
    for _, one in ipairs(type(record.nonces) == 'table' and record.nonces or {}) do
      if one == nonce then
        return true
      end
    end
    return false
  end
  local state
  local ended = job.ended and read_record(job.ended) or {}
  if has(ended) then
    state = type(ended.state) == 'string' and ended.state or 'active' -- a worker's own has none
  end
  for _, pair in ipairs(job.answered and read_record(job.answered) or {}) do
    if type(pair) == 'table' and pair[1] == nonce and type(pair[2]) == 'string' then
      state = pair[2]
    end
  end
  if state then
    return state == 'active' and 'requested' or 'cancelled', state
  end
  if job.before and has(job.before) then -- not answered yet, wherever the job is by now
    job.lock, job.place = lock_of(job), 'active'
    job.done = true
    return 'requested', 'active'
  end
end

-- Whether a secret is one that the workers believe; they say which they do, if they need any.
local function is_believed(secret)
  return not secrets
    or type(secret) == 'string' and secret ~= '' and string.find(secrets, secret, 1, true) ~= nil
end

-- What becomes of a job that does not run, or is taken away from its worker.
local function status_at_end(job)
  --- include: scheduler
  if job.place == 'completed' or job.place == 'failed' then
    return 'finished'
  elseif job.place == 'active' and not is_believed(ARGV[8]) then
    return 'secret'
  elseif job.place == 'waiting-children' or job.parent or is_scheduled(job.scheduler)
    or redis.call('EXISTS', job.key .. ':dependencies', job.key .. ':processed',
      job.key .. ':failed', job.key .. ':unsuccessful') > 0 then
    return 'left'
  end
  return job.place == 'active' and 'stopped' or 'cancelled'
end

local function judge(job)
  local status, state = first_answer(job)
  if status then
    job.status, job.state = status, state
    return
  end
  if job.status then
    return
  end
  job.lock = lock_of(job)
  job.place = job.lock and is_active(job) and 'active' or place_at_rest(job)
  job.state = job.place == 'wait' and 'waiting' or job.place
  job.status = job.place == 'active' and not forces and 'requested' or status_at_end(job)
end

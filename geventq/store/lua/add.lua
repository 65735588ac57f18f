-- Store new jobs, many at a time, all or none (wire-format 9.1, 9.3).
--
-- Everything that can be refused is looked at before the first write, because Redis does not
-- roll a script back.  Ids are drawn in one step, the stream is trimmed and the lists are
-- pushed once a chunk, workers are woken once: a reader sees the same as from single adds.
--
-- KEYS   wait active prioritized delayed marker events meta id pc
-- Also   <id>
-- ARGV   1 key base  2 now in ms  3 '1' = the call is sent again: what stands there as it would
--        store it, it has stored  4... five for each job: custom id or '', name, data, opts, and
--        '' or "timestamp or nothing;delay in ms;priority;1 for lifo or nothing"
-- Reply  the first and the last `added` of this call ('' if there is none), then for each job
--        its id, or, of an id that was known, {id, the hash that is there}
-- Events added and then waiting or delayed for each job; duplicated for a known custom id

--- include: place
--- include: types

local base, now = ARGV[1], ARGV[2]
local call = redis.call

local PER_JOB = 5
local CHUNK = 1000 -- jobs between two trims: far below what one LPUSH or one trim can take

local wrong = wrong_type(keys)
if wrong then
  return wrong
end

local FIRST = 3 -- arguments before those of the jobs
local count = (#ARGV - FIRST) / PER_JOB
local blocked = is_blocked(keys)
local next_id = call('INCRBY', keys.id, count) - count
local length = max_len(keys)

local answers, fifo, fifo_count = { '', '' }, {}, 0
local own = {} -- ids that this call has stored, or had stored when it was sent before
local any_ready, any_delayed = false, false

local function flush()
  if fifo_count > 0 then
    call('LPUSH', keys.wait, unpack(fifo, 1, fifo_count))
    fifo_count = 0
  end
end

local function tell_added(job_id, name)
  answers[2] = call('XADD', keys.events, '*', 'event', 'added', 'jobId', job_id, 'name', name)
  if answers[1] == '' then
    answers[1] = answers[2]
  end
end

-- Whether the job at a known id is the one that an earlier sending of this call has stored.
local function is_own(job_id, at)
  if ARGV[3] ~= '1' or own[job_id] then
    return false
  end
  local there = redis.pcall('HMGET', base .. job_id, 'name', 'data', 'opts', 'timestamp')
  local timestamp = string.match(ARGV[at + 5], '^(%d+);') or now
  return there[1] == ARGV[at + 2] and there[2] == ARGV[at + 3] and there[3] == ARGV[at + 4]
    and there[4] == timestamp
end

-- The id with what is stored there: nothing can be told of what is no hash.
local function known(job_id)
  local fields = redis.pcall('HGETALL', base .. job_id)
  return { job_id, fields.err and {} or fields }
end

-- Into delayed, prioritized, or the other end of wait: what most jobs do not ask for.
local function store_rare(job_id, job_key, at)
  local timestamp, delay, priority, lifo = string.match(ARGV[at + 5], '^(.*);(.*);(.*);(.*)$')
  call('HSET', job_key, 'name', ARGV[at + 2], 'data', ARGV[at + 3], 'opts', ARGV[at + 4],
    'timestamp', timestamp == '' and now or timestamp, 'delay', delay, 'priority', priority)
  tell_added(job_id, ARGV[at + 2])
  if delay ~= '0' then
    local due_ms = tonumber(now) + tonumber(delay)
    call('ZADD', keys.delayed, delayed_score(keys, due_ms), job_id)
    call('XADD', keys.events, '*', 'event', 'delayed', 'jobId', job_id, 'delay', due_ms)
    any_delayed = true
    return
  end
  if priority == '0' then
    flush() -- what came earlier in the call enters earlier
  end
  enqueue(keys, job_id, tonumber(priority), priority == '0' and lifo == '1')
  call('XADD', keys.events, '*', 'event', 'waiting', 'jobId', job_id)
  any_ready = true
end

for i = 1, count do
  local at = FIRST + (i - 1) * PER_JOB
  next_id = next_id + 1
  local job_id = ARGV[at + 1]
  local is_known = false
  if job_id == '' then
    job_id = string.format('%.0f', next_id)
  else
    is_known = call('EXISTS', base .. job_id) == 1
  end
  answers[i + 2] = job_id
  if is_known and is_own(job_id, at) then
    own[job_id] = true
  elseif is_known then
    answers[i + 2] = known(job_id)
    call('XADD', keys.events, 'MAXLEN', '~', length, '*', 'event', 'duplicated', 'jobId', job_id)
  elseif ARGV[at + 5] ~= '' then
    store_rare(job_id, base .. job_id, at)
  else
    local name = ARGV[at + 2]
    call('HSET', base .. job_id, 'name', name, 'data', ARGV[at + 3], 'opts', ARGV[at + 4],
      'timestamp', now, 'delay', '0', 'priority', '0')
    tell_added(job_id, name)
    fifo_count = fifo_count + 1
    fifo[fifo_count] = job_id
    call('XADD', keys.events, '*', 'event', 'waiting', 'jobId', job_id)
    any_ready = true
  end
  if i % CHUNK == 0 or i == count then
    flush()
    call('XTRIM', keys.events, 'MAXLEN', '~', length)
  end
end

if any_ready and not blocked then
  wake(keys)
end
if any_delayed then
  mark_next_delayed(keys)
end
return answers

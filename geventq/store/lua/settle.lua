-- Settle attempts that ended, and take new jobs: the worker's one call.
-- Each outcome stands for itself: one that is refused neither stops nor undoes the others.
-- (wire-format 8.10, 9.4-9.8, 18; cancellation.md 3.6, 7.1.  Numbers alone are wire-format's.)
--
-- KEYS   wait active prioritized delayed completed failed stalled meta pc marker events
-- ARGV   1 key base `prefix:queue:`
--        2 now in ms
--        3 how many jobs to take; -1: the caller does not ask
--        4 lock token, or its beginning  5 number of the first new lock token, '' = 4 is whole
--        6 lock duration in ms  7 worker name or ''
--        8... seven values an outcome:
--          kind      c complete, f fail, r retry now, d delay, w to wait, b give back
--          job id, lock token, ms of the end,
--          value     c: result JSON; f, r, d: failedReason ('' = leave the field)
--          atm       attempts made, after this end
--          more      '' or JSON: stack (text), keep {count, age, limit}, delay (ms), lifo,
--                    clear (the recorded request), exhausted, event (fields of an extra event),
--                    atm0 and stc0 (as at the take: the outcome is sent again)
-- Reply  {codes (0; 1: a first sending had done it; wire-format 10; -20: the hash is no hash),
--         jobs {id, lock token, hash as before the take}, broken {id, why},
--         ms of the next delayed job or 0}
-- Events completed | failed, retries-exhausted | waiting | delayed, the extra ones, active, drained
--- include: job
--- include: promote
--- include: take
--- include: keep

keys.base = ARGV[1]
local now_ms = tonumber(ARGV[2])
local room = tonumber(ARGV[3])
local FIRST, STRIDE = 8, 7
local count = (#ARGV - FIRST + 1) / STRIDE

local codes = {}
-- What this call has done so far: it decides about markers, events and the rest of the reply.
local finished, delayed_some, promoted = false, false, false
local max_events
local gone = {} -- keys of jobs that are not kept
-- Ends that are not yet in their sets: those of one removal policy are written at once.
local filed = {
  completed = { members = {}, now_ms = now_ms },
  failed = { members = {}, now_ms = now_ms },
}

-- How many events the stream keeps: looked up once, and only where it is needed.
local function event_limit()
  max_events = max_events or max_len(keys)
  return max_events
end

local function add_trimmed(...)
  redis.call('XADD', keys.events, 'MAXLEN', '~', event_limit(), '*', ...)
end

-- An outcome is sent again because its answer was lost: was it carried out the first time?
-- The hash tells (cancellation.md 3.6): an end raised atm, a move took the job out of active.
local function was_ours(kind, job_id, ended_ms, more)
  local job = redis.pcall('HMGET', keys.base .. job_id, 'atm', 'stc', 'finishedOn')
  if job.err then
    return false
  end
  local made, stalls = tonumber(job[1]) or 0, tonumber(job[2]) or 0
  if kind == 'c' or kind == 'f' then
    if redis.call('EXISTS', keys.base .. job_id) == 0 then
      return more.keep ~= nil
    end
    return made > more.atm0 and job[3] == ended_ms
  end
  if kind == 'r' or (kind == 'd' and not more.move) then
    return made > more.atm0
  end
  if made ~= more.atm0 or stalls ~= more.stc0 then
    return false
  end
  return not redis.call('LPOS', keys.active, job_id)
    or redis.call('EXISTS', keys.base .. job_id .. ':lock') == 1
end

-- Note an end for `completed` or `failed` (8.5).  What was noted before is written first if its
-- removal policy was another one, or if it nears the most values that `unpack` can take.
local function file(state, job_id, ended_ms, policy)
  local group = filed[state]
  local text = policy and table.concat(policy, ',') or ''
  if text ~= group.text or #group.members > 4000 then
    file_finished(keys.base, keys[state], group)
    group.text, group.policy = text, policy
  end
  group.members[#group.members + 1] = ended_ms
  group.members[#group.members + 1] = job_id
end

-- Complete (wire-format 9.5) or finally fail (9.6) a job that has left active.
local function finish(state, job_id, ended_ms, value, made, more)
  local job_key = keys.base .. job_id
  local policy = more.keep
  finished = true
  if policy and policy[1] == 0 then
    gone[#gone + 1] = job_key
  else
    local wrote
    if state == 'completed' then
      wrote = redis.pcall('HSET', job_key, 'returnvalue', value, 'finishedOn', ended_ms, 'atm', made)
    else
      wrote = redis.pcall('HSET', job_key, 'failedReason', value, 'stacktrace', more.stack,
        'finishedOn', ended_ms, 'atm', made)
    end
    if type(wrote) == 'table' then -- an error: it is no hash
      return -20
    end
    if more.clear then
      redis.call('HDEL', job_key, 'gqc', 'defa')
    elseif state == 'failed' then
      redis.call('HDEL', job_key, 'defa')
    end
    file(state, job_id, ended_ms, policy)
  end
  if state == 'completed' then
    redis.call('XADD', keys.events, '*', 'event', 'completed', 'jobId', job_id, 'returnvalue', value,
      'prev', 'active')
  else
    redis.call('XADD', keys.events, '*', 'event', 'failed', 'jobId', job_id, 'failedReason', value,
      'prev', 'active')
    if more.exhausted then
      redis.call('XADD', keys.events, '*', 'event', 'retries-exhausted', 'jobId', job_id,
        'attemptsMade', made)
    end
  end
  return 0
end

-- What stays in the hash of a job that will run again.  Fields of a failure only where it failed; a
-- move leaves `atm` as it is, because its attempt does not count.
local function write_attempt(job_key, value, made, more)
  if value ~= '' then
    redis.call('HSET', job_key, 'failedReason', value, 'stacktrace', more.stack, 'atm', made)
  elseif not more.move then
    redis.call('HSET', job_key, 'atm', made)
  end
  if more.clear then
    redis.call('HDEL', job_key, 'gqc', 'defa')
  end
end

-- Run again now, behind the others (9.6), or in front of them (9.8, cancellation.md 7.1).
local function requeue(kind, job_id, value, made, more)
  local job_key = keys.base .. job_id
  write_attempt(job_key, value, made, more)
  local priority = priority_of(job_key)
  enqueue(keys, job_id, priority, kind ~= 'r' or (priority == 0 and more.lifo))
  if priority == 0 or kind ~= 'w' then
    wake_unless_blocked(keys)
  end
  if kind == 'b' and redis.call('HINCRBY', job_key, 'ats', -1) <= 0 then
    redis.call('HDEL', job_key, 'ats')
  end
  add_trimmed('event', 'waiting', 'jobId', job_id, 'prev', 'active')
  return 0
end

-- Run again later: backoff, or the processor's own wish (9.7).
local function delay(job_id, ended_ms, value, made, more)
  local job_key = keys.base .. job_id
  write_attempt(job_key, value, made, more)
  local due_ms = tonumber(ended_ms) + more.delay
  redis.call('HSET', job_key, 'delay', more.delay)
  redis.call('ZADD', keys.delayed, delayed_score(keys, due_ms), job_id)
  add_trimmed('event', 'delayed', 'jobId', job_id, 'delay', due_ms)
  delayed_some = true
  return 0
end

-- Out of active (9.5 step 3), then where the end leads.  From which side the id is looked for is as
-- BullMQ does it: from the left for a move to the front of wait (9.8), else from the right.
local function settle(kind, job_id, ended_ms, value, made, more)
  if redis.call('LREM', keys.active, (kind == 'w' or kind == 'b') and 1 or -1, job_id) == 0 then
    return -3
  end
  if kind == 'c' then
    return finish('completed', job_id, ended_ms, value, made, more)
  elseif kind == 'f' then
    return finish('failed', job_id, ended_ms, value, made, more)
  elseif not is_job(keys.base .. job_id) then
    return -20
  elseif kind == 'd' then
    return delay(job_id, ended_ms, value, made, more)
  end
  if kind == 'r' and not promoted then
    promoted = true
    promote_due(keys, now_ms, is_blocked(keys))
  end
  return requeue(kind, job_id, value, made, more)
end

local NOTHING = {}

-- All outcomes of the call, in two passes.  The first only reads: it gives each outcome its code
-- (9.5, steps 1 and 2), with one command for all of them where the common case allows it.  The
-- second carries out what was not refused.
local function settle_all()
  local lock_keys, job_keys, child_keys = {}, {}, {}
  local ends = false
  for n = 1, count do
    local at = FIRST + (n - 1) * STRIDE
    local job_key = keys.base .. ARGV[at + 1]
    lock_keys[n], job_keys[n] = job_key .. ':lock', job_key
    if ARGV[at] == 'c' then
      child_keys[#child_keys + 1] = job_key .. ':dependencies'
      child_keys[#child_keys + 1] = job_key .. ':unsuccessful'
    end
    ends = ends or ARGV[at] == 'c' or ARGV[at] == 'f'
  end
  local holders = redis.call('MGET', unpack(lock_keys))
  local all_exist = redis.call('EXISTS', unpack(job_keys)) == count
  local children = #child_keys > 0 and redis.call('EXISTS', unpack(child_keys)) > 0
  local released, released_ids, accepted = {}, {}, {}
  for n = 1, count do
    local at = FIRST + (n - 1) * STRIDE
    local kind, job_id = ARGV[at], ARGV[at + 1]
    local more = ARGV[at + 6] == '' and NOTHING or cjson.decode(ARGV[at + 6])
    local code = 0
    if holders[n] ~= ARGV[at + 2] then
      code = holders[n] and -6 or -2
      if more.atm0 and was_ours(kind, job_id, ARGV[at + 3], more) then
        code = 1
      elseif not all_exist and redis.call('EXISTS', job_keys[n]) == 0 then
        code = -1
      end
    elseif not all_exist and redis.call('EXISTS', job_keys[n]) == 0 then
      code = -1
    elseif children and kind == 'c' and redis.call('SCARD', job_keys[n] .. ':dependencies') > 0 then
      code = -4
    elseif children and kind == 'c' and redis.call('ZCARD', job_keys[n] .. ':unsuccessful') > 0 then
      code = -9
    else
      released[#released + 1] = lock_keys[n]
      released_ids[#released_ids + 1] = job_id
      accepted[#accepted + 1] = { n, at, more }
    end
    codes[n] = code
  end
  if #released == 0 then
    return
  end
  redis.call('DEL', unpack(released))
  redis.call('SREM', keys.stalled, unpack(released_ids))
  if ends then
    redis.call('XTRIM', keys.events, 'MAXLEN', '~', event_limit())
  end
  for _, entry in ipairs(accepted) do
    local n, at, more = entry[1], entry[2], entry[3]
    codes[n] = settle(ARGV[at], ARGV[at + 1], ARGV[at + 3], ARGV[at + 4], ARGV[at + 5], more)
    if more.event and codes[n] == 0 then
      redis.call('XADD', keys.events, '*', unpack(more.event))
    end
  end
  file_finished(keys.base, keys.completed, filed.completed)
  file_finished(keys.base, keys.failed, filed.failed)
  for _, job_key in ipairs(gone) do
    delete_job_keys(job_key)
  end
end

-- A key of a foreign type stops the script here, before its first write: half-way, what was popped
-- or released would be in no list any more (cancellation.md 3.7).  The intersection looks at the
-- types of all its keys (a set passes for a sorted set) and at nothing else: the last never exists.
local paused, most_active = read_meta(keys)
redis.call('LLEN', keys.wait)
redis.call('LLEN', keys.active)
redis.call('XLEN', keys.events)
redis.call('ZINTER', 6, keys.prioritized, keys.delayed, keys.completed, keys.failed, keys.stalled,
  keys.base)

if count > 0 then
  settle_all()
end

-- Take (8.10): within the queue's global concurrency, and nothing while it is paused.
local jobs, broken, next_ms = {}, {}, 0
local blocked = false
if room >= 0 then
  if most_active then
    room = math.min(room, math.max(0, most_active - redis.call('LLEN', keys.active)))
    blocked = room == 0
  end
  blocked = blocked or paused
  promote_due(keys, now_ms, blocked)
  if room > 0 and not blocked then
    jobs, broken = take_jobs(keys, room, now_ms,
      { ARGV[4], ARGV[5] ~= '' and tonumber(ARGV[5]) or nil, ARGV[6] }, ARGV[7])
  end
  if #jobs < room or room == 0 then
    local head = redis.call('ZRANGE', keys.delayed, 0, 0, 'WITHSCORES')
    if head[2] then
      next_ms = math.floor(tonumber(head[2]) / DELAY_STEP)
    end
  end
end
-- A call that took all it asked for is followed by another one; else the marker tells (9.7).
if delayed_some and (#jobs == 0 or #jobs < room) then
  mark_next_delayed(keys)
end
-- Told after an end that leaves nothing to do (8.12).
if finished and #jobs == 0 and not blocked and (room < 0 or next_ms == 0)
  and redis.call('LLEN', keys.wait) == 0 and redis.call('LLEN', keys.active) == 0
  and redis.call('ZCARD', keys.prioritized) == 0 then
  redis.call('XADD', keys.events, '*', 'event', 'drained')
end
return { codes, jobs, broken, next_ms }

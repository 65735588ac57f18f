-- Settle attempts that ended, and take new jobs: the worker's one call.
-- (wire-format 8.10, 9.4-9.8, 18; cancellation.md 3.6, 3.7, 7.1.  Numbers alone are wire-format's.)
--
-- Phases types, judge (a code for each outcome), release (locks, active), carry out (each outcome
--        by its kind), file (ends into their sets), take, tell (markers, drained).
--        Each outcome stands for itself: one that is refused, or that fails, neither stops nor
--        undoes the others.
--
-- KEYS   wait active prioritized delayed completed failed stalled meta pc marker events
-- Also   <id> :lock :logs :dependencies :processed :failed :unsuccessful
-- ARGV   1 key base `prefix:queue:`
--        2 now in ms
--        3 how many jobs to take; -1: the caller does not ask
--        4 lock token, or its beginning  5 number of the first new lock token, '' = 4 is whole
--        6 lock duration in ms  7 worker name or ''
--        8 the smallest count of requests to cancel that is known for one of the outcomes;
--          '' = it is not known
--        9... seven values an outcome:
--          kind      c complete, f fail, r retry now, d delay, w to wait, b give back
--          job id, lock token, ms of the end,
--          value     c: result JSON; f, r, d: failedReason ('' = leave the field)
--          atm       attempts made, after this end
--          more      '' or JSON: stack (text), keep {count, age, limit}, delay (ms), move (the
--                    attempt does not count), lifo, clear (the recorded request), shown (it has
--                    ended the job), exhausted, event (fields of an extra event), heard (nonces of
--                    the requests that it has been decided with; '*' = whatever is recorded); of b:
--                    turn (text, which sorts as their takes), and of the first one mates (turns by
--                    id of what its worker has given back before); of an outcome that is sent
--                    again: atm0 and stc0 (as at the take), lapsed (its lock can have expired since)
-- Reply  {codes, jobs {id, lock token, hash as before the take}, broken {id, why},
--         ms of the next delayed job or 0; -1: there is more to take now,
--         id of the last event that tells of jobs taken, or '', the count of requests to cancel}
--        A code is 0; 1: a first sending had done it; 2: nothing was done, send it again; one of
--        wire-format 10; -20: its hash is no hash; -21: `more` cannot be read; a text: why it could
--        not be carried out; or {record}: the request that it was decided without.
-- Events completed | failed, retries-exhausted | waiting | delayed, the extra ones, active, drained
--- include: job
--- include: promote
--- include: give_back
--- include: take
--- include: keep

keys.base = ARGV[1]
local now_ms = tonumber(ARGV[2])
local room = tonumber(ARGV[3])
local FIRST, STRIDE = 9, 7
local count = (#ARGV - FIRST + 1) / STRIDE
local NOTHING = {}
local LATER, UNREADABLE = 2, -21

-- What this call has done so far: it decides about markers, events and the rest of the reply.
local finished, delayed_some, woken, promoted = false, false, false, false
local max_events
local gone = {} -- keys of jobs that are not kept
-- By priority: {id, how far it stood from the left end of active, turn of its take}.
local given_back = {}
local mates = nil -- turns by id: what its worker may have given back in other calls
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

-- judge ---------------------------------------------------------------------------------------

-- The rare rest of an outcome, or nil for what cannot be carried out.  It holds text of others, as a
-- trace that another program has cut through a character: of no outcome's the others may suffer.
local function read_more(kind, text)
  if text == '' then
    return kind == 'c' and NOTHING or nil
  end
  local read, more = pcall(cjson.decode, text)
  if not read or type(more) ~= 'table' then
    return nil
  end
  if kind == 'd' and type(more.delay) ~= 'number' then
    return nil
  end
  if (kind == 'f' or kind == 'r' or (kind == 'd' and not more.move)) and type(more.stack) ~= 'string' then
    return nil
  end
  return more
end

-- An outcome is sent again because its answer was lost: was it carried out the first time?  The hash
-- tells (cancellation.md 3.6): an end raised atm, a move took the job out of active.  Once the lock
-- can have lapsed, another may have ended the job: then only an end at our own moment is certain.
local function was_ours(kind, job_id, ended_ms, more)
  local job_key = keys.base .. job_id
  local job = redis.pcall('HMGET', job_key, 'atm', 'stc', 'finishedOn')
  if job.err then
    return false
  end
  local is_end = kind == 'c' or kind == 'f'
  if more.lapsed then
    return is_end and job[3] == ended_ms
  end
  local made, stalls = tonumber(job[1]) or 0, tonumber(job[2]) or 0
  if is_end then
    if redis.call('EXISTS', job_key) == 0 then
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
  return not redis.call('LPOS', keys.active, job_id) or redis.call('EXISTS', job_key .. ':lock') == 1
end

-- The code of an outcome whose lock is not its own (9.5, step 2).
local function judge_unlocked(n, holder, job_key, all_exist, more)
  local at = FIRST + (n - 1) * STRIDE
  local code = holder and -6 or -2
  if more.atm0 and was_ours(ARGV[at], ARGV[at + 1], ARGV[at + 3], more) then
    code = 1
  elseif not more.lapsed and not all_exist and redis.call('EXISTS', job_key) == 0 then
    code = -1
  end
  return code
end

-- Whether a job may not complete for its children's sake (9.5, step 1).  A key that is none of
-- theirs tells of no children.
local function judge_children(job_key)
  local open = redis.pcall('SCARD', job_key .. ':dependencies')
  if type(open) == 'number' and open > 0 then
    return -4
  end
  local failed = redis.pcall('ZCARD', job_key .. ':unsuccessful')
  return type(failed) == 'number' and failed > 0 and -9 or 0
end

-- The recorded request that an outcome was decided without, or nil (cancellation.md 2.5, 4.6).
local function unheard(job_key, heard)
  local record = redis.pcall('HGET', job_key, 'gqc')
  if type(record) ~= 'string' then
    return nil
  elseif type(heard) ~= 'table' then
    return record
  end
  local known = {}
  for _, nonce in ipairs(heard) do
    known[nonce] = true
  end
  local read, request = pcall(cjson.decode, record)
  local nonces = read and type(request) == 'table' and request.nonces
  for _, nonce in ipairs(type(nonces) == 'table' and not known['*'] and nonces or NOTHING) do
    if not known[nonce] then
      return record
    end
  end
end

-- Gives each outcome its code, 0 for what is to be carried out, and answers what those are about.
-- Only reads, with one command for all where the common case allows it.  Where very many jobs are
-- active, so that it takes long to find one, some outcomes have to come again.
local function judge(active_count, has_news)
  local most = math.max(1, math.floor(MOST_SEARCHED / math.max(1, active_count)))
  local lock_keys, job_keys, child_keys = {}, {}, {}
  for n = 1, count do
    local at = FIRST + (n - 1) * STRIDE
    local job_key = keys.base .. ARGV[at + 1]
    lock_keys[n], job_keys[n] = job_key .. ':lock', job_key
    if ARGV[at] == 'c' then
      child_keys[#child_keys + 1] = job_key .. ':dependencies'
      child_keys[#child_keys + 1] = job_key .. ':unsuccessful'
    end
  end
  local holders = redis.call('MGET', unpack(lock_keys))
  local all_exist = redis.call('EXISTS', unpack(job_keys)) == count
  local children = #child_keys > 0 and redis.call('EXISTS', unpack(child_keys)) > 0
  local codes, accepted, ids, locks = {}, {}, {}, {}
  for n = 1, count do
    local at = FIRST + (n - 1) * STRIDE
    local more = read_more(ARGV[at], ARGV[at + 6])
    local code = 0
    if not more then
      code = UNREADABLE
    elseif holders[n] ~= ARGV[at + 2] then
      code = judge_unlocked(n, holders[n], job_keys[n], all_exist, more)
    elseif not all_exist and redis.call('EXISTS', job_keys[n]) == 0 then
      code = -1
    elseif children and ARGV[at] == 'c' then
      code = judge_children(job_keys[n])
    end
    local record = code == 0 and has_news and unheard(job_keys[n], more.heard)
    if record then
      code = { record }
    elseif code == 0 and #accepted == most then
      code = LATER
    elseif code == 0 then
      accepted[#accepted + 1] = { n, at, more }
      ids[#ids + 1], locks[#locks + 1] = ARGV[at + 1], lock_keys[n]
    end
    codes[n] = code
  end
  return codes, accepted, ids, locks
end

-- release -------------------------------------------------------------------------------------

-- Takes `ids` out of active (9.5 step 3).  Answers for each how far it stood from the left end,
-- where taken jobs enter, if that is asked for; false if it was not there.
local function leave_active(ids, active_count, asks)
  local places = {}
  if #ids < 4 or active_count > 4 * #ids then -- then it is cheaper to look for each
    for _, job_id in ipairs(asks and ids or NOTHING) do
      places[job_id] = redis.call('LPOS', keys.active, job_id)
    end
    for _, job_id in ipairs(ids) do
      local place = places[job_id] or 0
      places[job_id] = redis.call('LREM', keys.active, 1, job_id) == 1 and place
    end
    return places
  end
  for _, job_id in ipairs(ids) do
    places[job_id] = false
  end
  local staying, stay = {}, 0
  for place, job_id in ipairs(redis.call('LRANGE', keys.active, 0, -1)) do
    if places[job_id] == false then
      places[job_id] = place
    else
      stay = stay + 1
      staying[stay] = job_id
    end
  end
  redis.call('DEL', keys.active)
  if stay > 0 then
    redis.call('RPUSH', keys.active, unpack(staying))
  end
  return places
end

-- carry out -----------------------------------------------------------------------------------

-- Note an end for `completed` or `failed` (8.5).  What was noted before is written first if its
-- removal policy was another one, or if it nears the most values that `unpack` can take.
local function file(state, job_id, ended_ms, policy)
  local group = filed[state]
  local text = policy and table.concat(policy, ',') or ''
  if text ~= group.text or #group.members > 4000 then
    file_finished(keys, keys[state], group)
    group.text, group.policy = text, policy
  end
  local members = group.members
  members[#members + 1] = ended_ms
  members[#members + 1] = job_id
end

local function tell_end(state, job_id, value, made, more)
  if state == 'completed' then
    redis.call('XADD', keys.events, '*', 'event', 'completed', 'jobId', job_id, 'returnvalue', value,
      'prev', 'active')
    return
  end
  redis.call('XADD', keys.events, '*', 'event', 'failed', 'jobId', job_id, 'failedReason', value,
    'prev', 'active')
  if more.exhausted then
    redis.call('XADD', keys.events, '*', 'event', 'retries-exhausted', 'jobId', job_id,
      'attemptsMade', made)
  end
end

-- The recorded request was answered (cancellation.md 4.4).  What it was stays: of one that ended the
-- job for good it is shown, and a call that comes again is known by it, whatever the job does by then
-- (cancellation.md 3.6).
local function clear_request(job_key, more)
  local record = redis.call('HGET', job_key, 'gqc')
  redis.call('HDEL', job_key, 'gqc', 'defa')
  if record then
    redis.call('HSET', job_key, more.shown and 'gqe' or 'gqa', record)
  end
end

-- Complete (9.5) or finally fail (9.6) a job.
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
      clear_request(job_key, more)
    elseif state == 'failed' then
      redis.call('HDEL', job_key, 'defa')
    end
    file(state, job_id, ended_ms, policy)
  end
  tell_end(state, job_id, value, made, more)
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
    clear_request(job_key, more)
  end
end

-- Run again now, behind the others (9.6), or in front of them (9.8).
local function requeue(kind, job_id, value, made, more)
  local job_key = keys.base .. job_id
  if kind == 'r' and not promoted then
    promoted = true
    promote_due(keys, now_ms, is_blocked(keys))
  end
  write_attempt(job_key, value, made, more)
  local priority = priority_of(job_key)
  enqueue(keys, job_id, priority, kind == 'w' or (priority == 0 and more.lifo))
  woken = woken or priority == 0 or kind == 'r'
  add_trimmed('event', 'waiting', 'jobId', job_id, 'prev', 'active')
  return 0
end

-- Not taken at all, as far as anybody can tell (cancellation.md 7.1).  Where it goes is seen to for
-- all that are given back, by their order.
local function prepare_give_back(job_id, value, made, more, place)
  local job_key = keys.base .. job_id
  write_attempt(job_key, value, made, more)
  local started = redis.pcall('HINCRBY', job_key, 'ats', -1)
  if type(started) == 'table' or started <= 0 then
    redis.call('HDEL', job_key, 'ats')
  end
  local priority = priority_of(job_key)
  local group = given_back[priority] or {}
  given_back[priority] = group
  group[#group + 1] = { job_id, place, more.turn }
  mates = mates or more.mates
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

-- Where an outcome leads; `place` is where its job stood in active.
local function carry_out(at, more, place)
  local kind, job_id = ARGV[at], ARGV[at + 1]
  local ended_ms, value, made = ARGV[at + 3], ARGV[at + 4], ARGV[at + 5]
  if kind == 'c' then
    return finish('completed', job_id, ended_ms, value, made, more)
  elseif kind == 'f' then
    return finish('failed', job_id, ended_ms, value, made, more)
  elseif not is_job(keys.base .. job_id) then
    return -20
  elseif kind == 'd' then
    return delay(job_id, ended_ms, value, made, more)
  elseif kind == 'b' then
    return prepare_give_back(job_id, value, made, more, place)
  end
  return requeue(kind, job_id, value, made, more)
end

-- One outcome's failure is its own code, as text; its job stalls, so that it is not lost.
local function carry_out_alone(at, more, place)
  local done, code = pcall(carry_out, at, more, place)
  if not done then
    redis.call('LPUSH', keys.active, ARGV[at + 1])
    return 'it could not be carried out: ' .. (type(code) == 'table' and code.err or tostring(code))
  end
  if more.event and code == 0 then
    redis.pcall('XADD', keys.events, '*', unpack(more.event))
  end
  return code
end

-- settle: judge, release, carry out, file ------------------------------------------------------

-- In the order of the takes: that of active, or, with some that came back before, of their turns.
local function give_all_back()
  for priority, group in pairs(given_back) do
    local found = mates and lift_mates(keys, mates, priority) or {}
    if #found == 0 then
      table.sort(group, function(one, other) return one[2] > other[2] end)
    else
      for _, entry in ipairs(found) do
        group[#group + 1] = entry
      end
      table.sort(group, function(one, other) return (one[3] or '') < (other[3] or '') end)
    end
    local ids = {}
    for n, entry in ipairs(group) do
      ids[n] = entry[1]
    end
    give_back(keys, ids, priority)
    woken = true
  end
end

local function settle(active_count, has_news)
  local codes, accepted, ids, locks = judge(active_count, has_news)
  if #accepted == 0 then
    return codes
  end
  local ends, gives = false, false
  for _, entry in ipairs(accepted) do
    local kind = ARGV[entry[2]]
    ends = ends or kind == 'c' or kind == 'f'
    gives = gives or kind == 'b'
  end
  redis.call('DEL', unpack(locks))
  redis.call('SREM', keys.stalled, unpack(ids))
  local places = leave_active(ids, active_count, gives)
  if ends then
    redis.call('XTRIM', keys.events, 'MAXLEN', '~', event_limit())
  end
  for _, entry in ipairs(accepted) do
    local n, at, more = entry[1], entry[2], entry[3]
    local place = places[ARGV[at + 1]]
    places[ARGV[at + 1]] = false -- a second outcome of the same job finds it gone
    codes[n] = place and carry_out_alone(at, more, place) or -3
  end
  give_all_back()
  file_finished(keys, keys.completed, filed.completed)
  file_finished(keys, keys.failed, filed.failed)
  for _, job_key in ipairs(gone) do
    delete_job_keys(job_key)
  end
  if woken then
    wake_unless_blocked(keys)
  end
  return codes
end

-- types ---------------------------------------------------------------------------------------

-- A key of a foreign type stops the script here, before its first write: half-way, what was popped
-- or released would be in no list any more (cancellation.md 3.7).  The intersection looks at the
-- types of all its keys (a set passes for a sorted set) and at nothing else: the last never exists.
local paused, most_active, requests = read_meta(keys)
redis.call('LLEN', keys.wait)
redis.call('XLEN', keys.events)
redis.call('ZINTER', 7, keys.prioritized, keys.delayed, keys.completed, keys.failed, keys.stalled,
  keys.marker, keys.base)
local active_count = redis.call('LLEN', keys.active)
if room > 0 and not string.match(ARGV[6], '^[1-9]%d*$') then
  return redis.error_reply('ERR the lock duration must be a positive whole number of ms')
end

-- Hashes are looked at only where somebody has asked since the jobs were taken.
local codes = count > 0 and settle(active_count, tonumber(ARGV[8]) ~= requests) or {}

-- take ----------------------------------------------------------------------------------------

-- Within the queue's global concurrency, and nothing while it is paused (8.10).
local jobs, broken, next_ms = {}, {}, 0
local blocked, there_are_more, told = false, false, nil
if room >= 0 then
  if most_active then
    room = math.min(room, math.max(0, most_active - redis.call('LLEN', keys.active)))
    blocked = room == 0
  end
  blocked = blocked or paused
  promote_due(keys, now_ms, blocked)
  if room > 0 and not blocked then
    jobs, broken, there_are_more, told = take_jobs(keys, room, ARGV[2],
      { ARGV[4], ARGV[5] ~= '' and tonumber(ARGV[5]) or nil, ARGV[6] }, ARGV[7])
  end
  if there_are_more then
    next_ms = -1
  elseif #jobs < room or room == 0 then
    local head = redis.call('ZRANGE', keys.delayed, 0, 0, 'WITHSCORES')
    if head[2] then
      next_ms = math.floor(tonumber(head[2]) / DELAY_STEP)
    end
  end
end

-- tell ----------------------------------------------------------------------------------------

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
return { codes, jobs, broken, next_ms, told or '', string.format('%.0f', requests) }

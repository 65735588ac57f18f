-- Settle attempts that ended, and take new jobs: the worker's one call.
-- (wire-format 8.10, 9.4-9.8, 18; cancellation.md 3.6, 3.7, 7.1.  Numbers alone are wire-format's.)
--
-- Phases types, judge (a code for each outcome), release (locks, active), carry out (each outcome
--        by its kind), file (ends into their sets), take, tell (markers, drained).
--        Each outcome stands for itself: one that is refused, or that fails, neither stops nor
--        undoes the others.
--
-- KEYS   wait active prioritized delayed completed failed stalled meta pc marker events
-- Also   <id> :lock :logs :dependencies :processed :failed :unsuccessful gq: meta:
-- ARGV   1 key base `prefix:queue:`
--        2 now in ms
--        3 how many jobs to take; -1: the caller does not ask
--        4 lock token, or its beginning  5 number of the first new lock token, '' = 4 is whole
--        6 lock duration in ms  7 worker name or ''
--        8 the smallest count of requests to cancel that is known for one of the outcomes;
--          '' = it is not known
--        9... outcomes; those that follow each other and differ in nothing else share what they are:
--          how many  they are
--          kind      c complete, f fail, r retry now, d delay, w to wait, b give back
--          ms        of the end
--          value     c: result JSON; f, r, d: failedReason ('' = leave the field)
--          atm       attempts made, after this end
--          more      '' or JSON: stack (text), keep {count, age, limit}, delay (ms), move (the
--                    attempt does not count), lifo, clear (the recorded request), shown (it has
--                    ended the job), exhausted, event (fields of an extra event), heard (nonces of
--                    the requests that it has been decided with; '*' = whatever is recorded); of b:
--                    turn (text, which sorts as their takes), and of the first one mates (turns by
--                    id of what its worker has given back before); of an outcome that is sent
--                    again: atm0 and stc0 (as at the take), lapsed (its lock can have expired since)
--          then of each its job id and its lock token
-- Reply  {codes, broken {id, why}, ms of the next delayed job or 0; -1: there is more to take now,
--         id of the last event that tells of jobs taken, or '', the count of requests to cancel,
--         then of each job id, lock token, hash as before the take: names and values, with a zero
--         byte between them where none of them has one}
--        Instead of codes that are all 0 stands a 0, and instead of no broken ids.
--        A code is 0; 1: a first sending had done it; 2: nothing was done, send it again; one of
--        wire-format 10; -20: its hash is no hash; -21: `more` cannot be read; a text: why it could
--        not be carried out; or {record}: the request that it was decided without.
-- Events completed | failed, retries-exhausted | waiting | delayed, the extra ones, active, drained
--- include: bound
--- include: digits
--- include: take
--- include: keep

keys.base = ARGV[1]
local room = tonumber(ARGV[3])
-- Of each outcome its job, its lock token, and where in ARGV stands what it is: KIND and so on from
-- there.
local KIND, ENDED_MS, VALUE, MADE, MORE, SHARED = 1, 2, 3, 4, 5, 6
local job_ids, lock_tokens, shared_at, count = {}, {}, {}, 0
do
  local at = 9
  while at <= #ARGV do
    local behind = at + SHARED + 2 * ARGV[at]
    for id_at = at + SHARED, behind - 1, 2 do
      count = count + 1
      job_ids[count], lock_tokens[count], shared_at[count] = ARGV[id_at], ARGV[id_at + 1], at
    end
    at = behind
  end
end
local NOTHING = {}
local LATER, UNREADABLE = 2, -21

-- types ---------------------------------------------------------------------------------------

-- When the head of delayed is due, in ms (its score has 12 bits more: wire-format 2.2), or nil.
local function next_due()
  local head = redis.call('ZRANGE', keys.delayed, '0', '0', 'WITHSCORES')
  return head[2] and math.min(HUGE, math.max(0, math.floor(tonumber(head[2]) / 4096)))
end

-- A key of a foreign type stops the script here, before its first write: half-way, what was popped
-- or released would be in no list any more (cancellation.md 3.7).  The intersection looks at the
-- types of all its keys (a set passes for a sorted set) and at nothing else: the last never exists.
-- Of the stream it is asked whether it takes more, too.
local meta = redis.call('HMGET', keys.meta, 'paused', 'concurrency', 'gqn', 'opts.maxLenEvents')
local due_ms = next_due()
local active_count = redis.call('LLEN', keys.active)
redis.call('LLEN', keys.wait)
redis.call('ZINTER', '6', keys.prioritized, keys.completed, keys.failed, keys.stalled, keys.marker,
  keys.base .. 'meta:none')
if redis.call('XREAD', 'STREAMS', keys.events, '18446744073709551615-18446744069414584319') then
  --- include: stream
  return used_up(keys.events)
end
if room > 0 and not string.find(ARGV[6], '^[1-9]%d*$') then
  return redis.error_reply('ERR the lock duration must be a positive whole number of ms')
end

-- What meta says (wire-format 5); foreign text is as good as none.
local paused, most_active = meta[1] ~= false, nil
if meta[2] then
  --- include: limit
  most_active = limit_in(meta[2])
end
local requests = digits_in(meta[3]) or '0' -- to cancel: it only ever rises
local max_events = digits_in(meta[4]) or '10000'

-- judge ---------------------------------------------------------------------------------------

-- Gives each outcome that is not carried out its code, and each its `more`, if it has one.  Only reads,
-- with one command for all where the common case allows it.
local codes, mores, has_codes = {}, {}, false
local ids, locks = job_ids, {} -- of the outcomes that are carried out
local gives = false -- one of them gives its job back

if count > 0 then
  local all_exist, children = false, false
  if count == 1 then -- in one command: the hash counts for three, so the rest tells of children
    local job_key = keys.base .. job_ids[1]
    locks[1] = job_key .. ':lock'
    local found = redis.call('EXISTS', job_key, job_key, job_key, job_key .. ':dependencies',
      job_key .. ':unsuccessful')
    all_exist, children = found >= 3, found % 3 > 0
  else
    local job_keys, child_keys = {}, {}
    for n = 1, count do
      local job_key = keys.base .. job_ids[n]
      locks[n], job_keys[n] = job_key .. ':lock', job_key
      if ARGV[shared_at[n] + KIND] == 'c' then
        child_keys[#child_keys + 1] = job_key .. ':dependencies'
        child_keys[#child_keys + 1] = job_key .. ':unsuccessful'
      end
    end
    all_exist = redis.call('EXISTS', unpack(job_keys)) == count
    children = #child_keys > 0 and redis.call('EXISTS', unpack(child_keys)) > 0
  end
  local holders = redis.call('MGET', unpack(locks))
  -- Hashes are looked at only where somebody has asked since the jobs were taken.
  local has_news = ARGV[8] ~= requests
  local is_plain = all_exist and not children and not has_news
  local look
  local accepted = 0
  local more, at, kind = nil, nil, nil
  for n = 1, count do
    local code = 0
    if at ~= shared_at[n] then
      at = shared_at[n]
      kind, more = ARGV[at + KIND], NOTHING
      if kind ~= 'c' or ARGV[at + MORE] ~= '' then
        --- include: more
        more = read_more(kind, ARGV[at + MORE])
      end
    end
    if not more then
      code = UNREADABLE
    elseif not is_plain or holders[n] ~= lock_tokens[n] then
      if not look then
        --- include: doubt
        look = make_closer_look(keys, all_exist, children, has_news)
      end
      code = look(holders[n], lock_tokens[n], kind, job_ids[n], ARGV[at + ENDED_MS], more)
    end
    if code == 0 then
      accepted = accepted + 1
      -- Where very many jobs are active, so that it takes long to find one, some have to come again.
      if accepted > 1 and accepted * active_count > MOST_SEARCHED then
        code = LATER
      else
        gives = gives or kind == 'b'
      end
    end
    if code ~= 0 then
      codes[n], has_codes = code, true
    elseif more ~= NOTHING then
      mores[n] = more
    end
  end
  if has_codes then
    local lock_keys = locks
    ids, locks = {}, {}
    for n = 1, count do
      if not codes[n] then
        ids[#ids + 1], locks[#locks + 1] = job_ids[n], lock_keys[n]
      end
    end
  end
end

-- release -------------------------------------------------------------------------------------

-- How far each job stood from the left end of active, where taken jobs enter, if one is given back;
-- false if it was not there.
local places = {}
if #ids > 0 then
  redis.call('DEL', unpack(locks))
  redis.call('SREM', keys.stalled, unpack(ids))
  if not meta[4] then
    redis.call('HSET', keys.meta, 'opts.maxLenEvents', max_events)
  end
  -- Out of active (9.5 step 3).
  if #ids < 4 or active_count > 4 * #ids then -- then it is cheaper to look for each
    for _, job_id in ipairs(gives and ids or NOTHING) do
      places[job_id] = redis.call('LPOS', keys.active, job_id)
    end
    for _, job_id in ipairs(ids) do
      local place = places[job_id] or 0
      places[job_id] = redis.call('LREM', keys.active, '1', job_id) == 1 and place
    end
  else
    for _, job_id in ipairs(ids) do
      places[job_id] = false
    end
    local staying, stay = {}, 0
    for place, job_id in ipairs(redis.call('LRANGE', keys.active, '0', '-1')) do
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
  end
end

-- carry out -----------------------------------------------------------------------------------

local finished, delayed_some = false, false

if #ids > 0 then
  local gone = {} -- keys of jobs that are not kept
  local filed = {} -- ends that are not yet in their sets, by set: those of one policy go at once
  local trims = true -- the stream: with the first event that tells of an end, which costs least
  local rerun, end_reruns -- made with the first outcome that they are for

  -- Note an end for `completed` or `failed` (8.5).  What was noted before is written first if its
  -- removal policy was another one, or if it nears the most values that `unpack` can take.
  local function file(set_key, job_id, ended_ms, policy)
    local group = filed[set_key]
    local text = policy and table.concat(policy, ',') or ''
    if not group or group.text ~= text or #group.members > 4000 then
      if group then
        file_finished(keys, set_key, group)
      end
      filed[set_key] = { members = { ended_ms, job_id }, text = text, policy = policy, now_ms = ARGV[2] }
      return
    end
    local members = group.members
    members[#members + 1] = ended_ms
    members[#members + 1] = job_id
  end

  -- Complete (9.5) or finally fail (9.6) a job.
  local function finish(completes, job_id, ended_ms, value, made, more)
    local job_key = keys.base .. job_id
    local policy = more.keep
    finished = true
    if policy and policy[1] == 0 then
      gone[#gone + 1] = job_key
      if more.clear then
        --- include: unkept
        keep_answers(keys, job_id, more.heard)
      end
    else
      local wrote
      if completes then
        wrote = redis.pcall('HSET', job_key, 'returnvalue', value, 'finishedOn', ended_ms, 'atm', made)
      else
        wrote = redis.pcall('HSET', job_key, 'failedReason', value, 'stacktrace', more.stack,
          'finishedOn', ended_ms, 'atm', made)
      end
      if type(wrote) == 'table' then -- an error: it is no hash
        return -20
      end
      if more.clear then
        --- include: answered
        clear_request(job_key, more)
      elseif not completes then
        redis.call('HDEL', job_key, 'defa')
      end
      file(completes and keys.completed or keys.failed, job_id, ended_ms, policy)
    end
    local event, field = 'failed', 'failedReason'
    if completes then
      event, field = 'completed', 'returnvalue'
    end
    if trims then
      trims = false
      redis.call('XADD', keys.events, 'MAXLEN', '~', max_events, '*', 'event', event, 'jobId', job_id,
        field, value, 'prev', 'active')
    else
      redis.call('XADD', keys.events, '*', 'event', event, 'jobId', job_id, field, value,
        'prev', 'active')
    end
    if more.exhausted then
      redis.call('XADD', keys.events, '*', 'event', 'retries-exhausted', 'jobId', job_id,
        'attemptsMade', made)
    end
    return 0
  end

  -- Where an outcome leads; `at` is where it says what it is, `place` where its job stood in active.
  local function carry_out(job_id, at, more, place)
    local kind, ended_ms = ARGV[at + KIND], ARGV[at + ENDED_MS]
    local value, made = ARGV[at + VALUE], ARGV[at + MADE]
    if kind == 'c' or kind == 'f' then
      return finish(kind == 'c', job_id, ended_ms, value, made, more)
    end
    if not rerun then
      --- include: rerun
      rerun, end_reruns = make_rerun(keys, tonumber(ARGV[2]), max_events)
    end
    return rerun(kind, job_id, ended_ms, value, made, more, place)
  end

  for n = 1, count do
    if not codes[n] then
      local job_id, more = job_ids[n], mores[n] or NOTHING
      local place = places[job_id]
      local done, code = true, -3
      if place then
        places[job_id] = false -- a second outcome of the same job finds it gone
        done, code = pcall(carry_out, job_id, shared_at[n], more, place)
      end
      if not done then -- one outcome's failure is its own code, as text; its job stalls: it is not lost
        redis.call('LPUSH', keys.active, job_id)
        code = 'it could not be carried out: ' .. (type(code) == 'table' and code.err or tostring(code))
      elseif code == 0 and more.event then
        redis.pcall('XADD', keys.events, '*', unpack(more.event))
      end
      if code ~= 0 then
        codes[n], has_codes = code, true
      end
    end
  end

  for set_key, group in pairs(filed) do
    file_finished(keys, set_key, group)
  end
  if #gone > 0 then
    --- include: remove
    for _, job_key in ipairs(gone) do
      delete_job_keys(job_key)
    end
  end
  if rerun then
    delayed_some = end_reruns()
    due_ms = next_due()
  end
end

if has_codes then
  for n = 1, count do
    codes[n] = codes[n] or 0
  end
end

-- take ----------------------------------------------------------------------------------------

-- Within the queue's global concurrency, and nothing while it is paused (8.10).
local reply = { has_codes and codes or 0, 0, 0, '', requests }
local taken, blocked = 0, false
if room >= 0 then
  local wanted, there_are_more = ARGV[3], false
  if most_active then
    room = math.min(room, math.max(0, most_active - redis.call('LLEN', keys.active)))
    blocked, wanted = room == 0, room
  end
  blocked = blocked or paused
  if due_ms and due_ms <= tonumber(ARGV[2]) then
    --- include: promote
    promote_due(keys, tonumber(ARGV[2]), blocked)
    due_ms = next_due()
  end
  if room > 0 and not blocked then
    local broken, told
    taken, broken, there_are_more, told = take_jobs(keys, wanted, ARGV[2], ARGV[4], ARGV[5], ARGV[6],
      ARGV[7], reply)
    reply[2], reply[4] = #broken > 0 and broken or 0, told or ''
  end
  if there_are_more then
    reply[3] = -1
  elseif taken < room or room == 0 then
    reply[3] = due_ms or 0
  end
end

-- tell ----------------------------------------------------------------------------------------

-- A call that took all it asked for is followed by another one; else the marker tells (9.7).
if delayed_some and (taken == 0 or taken < room) then
  --- include: place
  mark_next_delayed(keys)
end
-- Told after an end that leaves nothing to do (8.12).
if finished and taken == 0 and not blocked and (room < 0 or reply[3] == 0)
  and redis.call('LLEN', keys.wait) == 0 and redis.call('LLEN', keys.active) == 0
  and redis.call('ZCARD', keys.prioritized) == 0 then
  redis.call('XADD', keys.events, '*', 'event', 'drained')
end
return reply

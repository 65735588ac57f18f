-- Cancel jobs, in whatever state each of them is (cancellation.md 4.1-4.5, 5.1): what does not run
-- is failed here and now, what runs gets the request recorded, or is taken away from its worker.
--
-- Phases types, judge (where each job is, and what that means), remove (from wait, all in one
--        pass), carry out, file (into failed), tell (messages, last: a refused PUBLISH undoes
--        nothing).
--
-- KEYS   wait paused active prioritized delayed waiting_children completed failed stalled meta pc
--        marker events schedulers answers
-- Also   <id> :lock :logs :dependencies :processed :failed :unsuccessful de: repeat: meta:
-- ARGV   1 key base  2 now in ms
--        3 the request as JSON: a record (cancellation.md 4.3) without `atm`, `ts`, `at`, `state`,
--          `nonces`, `signed`
--        4 the text that the job fails with  5 queue name as JSON
--        6 more members of a message, as JSON without the braces
--        7 some of: 'f' take running jobs away, 'd' only tell what would happen, 'r' for this run only
--        8 what the caller's secret is told by (cancellation.md 8), '' = he has none
--        9 the request's nonce  10 its reason: a text as it is, else as JSON
--        11... five values a job:
--          job id, its `timestamp` and its `atm` as the caller has seen them ('' = not looked),
--          its message, signed, or '', f: 'f' fail for good, 'x' the same, attempts used up,
--          or the ms of delay before the next attempt (0 = now)
-- Reply  one entry for each of the first jobs, {status, state before, worker}: what is left is for
--        the next call.  Status: cancelled, requested, stopped, finished, not_found; left (has a
--        parent, children or a live scheduler), changed (it is not as the caller has seen it),
--        secret (force needs that of the workers), broken (its key holds no hash)
-- Events failed, cancelled, cancel-requested, retries-exhausted, waiting, delayed
--- include: number

keys.base = ARGV[1]
local now_ms = tonumber(ARGV[2])
local text, nonce, reason = ARGV[4], ARGV[9], ARGV[10]
local forces, is_dry = string.find(ARGV[7], 'f') ~= nil, string.find(ARGV[7], 'd') ~= nil
local is_for_run = string.find(ARGV[7], 'r') ~= nil
local FIRST, STRIDE = 11, 5
local count = (#ARGV - FIRST + 1) / STRIDE
-- How many list elements and bytes of records one call looks at, some 20 ms; the jobs behind them are
-- for the next.
local BUDGET = 2000000
local visited = 0 -- of these, at most
-- A list that is not longer is filtered as a whole where many go.
local FILTERED = 30000

local lengths = { active = 0, wait = 0, paused = 0 } -- of lists, from the look at them on
local requests, max_events, secrets -- as the queue's meta has them

-- The keys that a request to a running job needs are of their types; of `active` the search tells.
local function look()
  redis.call('STRLEN', keys.pc) -- none may call this but who may cancel (access.md)
  if count > 1 then
    lengths.active = redis.call('LLEN', keys.active)
  end
  local meta = redis.call('HMGET', keys.meta, 'gqn', 'opts.maxLenEvents', 'gqs')
  requests, max_events, secrets = whole_in(digits_in(meta[1])), meta[2], meta[3]
  redis.call('XLEN', keys.events)
end

local has_looked = false
-- And so are all others, at few commands, before a job is looked for in them.
local function look_at_all()
  if has_looked then
    return
  end
  has_looked = true
  lengths.wait, lengths.paused = redis.call('LLEN', keys.wait), redis.call('LLEN', keys.paused)
  redis.call('ZINTER', 7, keys.prioritized, keys.delayed, keys.waiting_children, keys.completed,
    keys.failed, keys.schedulers, keys.base .. 'meta:none') -- never there, so that nothing is compared
  redis.call('ZCARD', keys.marker)
  redis.call('SCARD', keys.stalled)
end

-- What a record says.
local function read_record(record)
  --- include: record
  visited = visited + #record
  return record_in(record)
end

-- The server's clock, which stands still while a script runs.
local clock = redis.call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local at_ms = math.floor(now_us / 1000)

-- -- judge ------------------------------------------------------------------------------------

local function read_job(at)
  local job = { id = ARGV[at], key = keys.base .. ARGV[at], signed = ARGV[at + 3],
    then_what = ARGV[at + 4] }
  if not string.find(job.id, '^%d+$') then
    --- include: reserved
    if is_queue_key(job.id) then
      job.status = 'not_found'
      return job
    end
  end
  local fields = redis.pcall('HMGET', job.key, 'timestamp', 'atm', 'attemptsMade', 'parentKey',
    'rjk', 'gqc', 'gqe', 'opts', 'priority', 'deid', 'pb', 'gqa')
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
  if ARGV[at + 1] ~= '' and (job.timestamp ~= ARGV[at + 1] or job.made ~= ARGV[at + 2]) then
    job.status = 'changed'
  end
  job.timestamp, job.made = whole_in(job.timestamp), whole_in(job.made)
  job.before = job.asked and read_record(job.asked)
  return job
end

local function is_active(job)
  visited = visited + lengths.active
  return redis.call('LPOS', keys.active, job.id)
end

-- Where a job is that does not run, as the keys name it.  What is in none of them is searched for in
-- wait as it is removed from it: that is one look less.
local function place_at_rest(job)
  look_at_all()
  for _, set in ipairs({
    { 'completed', keys.completed }, { 'failed', keys.failed }, { 'delayed', keys.delayed },
    { 'prioritized', keys.prioritized }, { 'waiting-children', keys.waiting_children },
  }) do
    if redis.call('ZSCORE', set[2], job.id) then
      return set[1]
    end
  end
  return not job.lock and is_active(job) and 'active' or 'wait'
end

-- The answer that a call of this nonce has given, which was lost on the way (cancellation.md 3.6).
local function first_answer(job)
  local answer = redis.call('HGET', keys.answers, job.id)
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
    job.lock, job.place = redis.call('GET', job.key .. ':lock'), 'active'
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
  job.lock = redis.call('GET', job.key .. ':lock')
  job.place = job.lock and is_active(job) and 'active' or place_at_rest(job)
  job.state = job.place == 'wait' and 'waiting' or job.place
  job.status = job.place == 'active' and not forces and 'requested' or status_at_end(job)
end

local jobs, in_wait = {}, {}
local has_ends = false -- of jobs, here and now
local function judge_all()
  look()
  if forces then
    look_at_all()
  end
  local seen = {}
  for n = 1, count do
    local job = read_job(FIRST + (n - 1) * STRIDE)
    if seen[job.id] then -- named twice: the same answer
      jobs[n] = seen[job.id]
    else
      judge(job)
      jobs[n], seen[job.id] = job, job
      has_ends = has_ends or job.status == 'cancelled' or job.status == 'stopped'
      if job.status == 'cancelled' and job.place == 'wait' then
        in_wait[#in_wait + 1] = job
        if lengths.wait > FILTERED and not is_dry then
          visited = visited + lengths.wait
        end
      end
    end
    if visited > BUDGET then
      count = n
      break
    end
  end
end
local judged, why = pcall(judge_all)
if not judged then -- a key of another type, or this user may not look (cancellation.md 8)
  --- include: types
  return wrong_type(keys) or type(why) == 'table' and why or redis.error_reply(why)
end

-- -- remove -----------------------------------------------------------------------------------

-- The first write frees or changes nothing, so that a full server lets the rest be written.
if not is_dry then
  redis.call('DEL', keys.base .. 'meta:none')
end

local function remove_from_wait()
  -- Whether each job is in the list, and out of it unless nothing is to be changed.
  local function take_out_one_by_one(list_key, wanted)
    for _, job in ipairs(wanted) do
      if is_dry then -- in no other place, so it is here, or in none
        job.found = lengths.wait > FILTERED or redis.call('LPOS', list_key, job.id) and true
      else
        job.found = redis.call('LREM', list_key, 1, job.id) > 0
      end
    end
  end

  local function filter(list_key, wanted)
    local by_id, stay = {}, {}
    for _, job in ipairs(wanted) do
      by_id[job.id] = job
    end
    for _, id in ipairs(redis.call('LRANGE', list_key, 0, -1)) do
      if by_id[id] then
        by_id[id].found = true
      else
        stay[#stay + 1] = id
      end
    end
    if is_dry then
      return
    end
    redis.call('DEL', list_key)
    for first = 1, #stay, 5000 do
      redis.call('RPUSH', list_key, unpack(stay, first, math.min(first + 4999, #stay)))
    end
  end

  local function take_out(list_key, wanted, length)
    if #wanted > 50 and length <= FILTERED then
      filter(list_key, wanted)
    else
      take_out_one_by_one(list_key, wanted)
    end
  end

  take_out(keys.wait, in_wait, lengths.wait)
  if lengths.paused > 0 then -- left there by a version 5 (wire-format 16)
    local rest = {}
    for _, job in ipairs(in_wait) do
      if not job.found then
        rest[#rest + 1] = job
      end
    end
    take_out(keys.paused, rest, lengths.paused)
  end
  for _, job in ipairs(in_wait) do
    if not job.found then -- a hash in no list: some program's half-done work
      job.status, job.state = 'not_found', 'unknown'
    end
  end
end
if #in_wait > 0 then
  remove_from_wait()
end

-- -- carry out --------------------------------------------------------------------------------

local messages = {}

local has_trimmed = false
local function tell(...)
  if has_trimmed then
    redis.call('XADD', keys.events, '*', ...)
  else
    --- include: meta
    has_trimmed = true
    redis.call('XADD', keys.events, 'MAXLEN', '~', max_len(keys, max_events), '*', ...)
  end
end

-- The request as it is kept with a job; `more` are members, as JSON.
local function record_for(job, more)
  return string.sub(ARGV[3], 1, -2)
    .. string.format(',"atm":%.0f,"ts":%.0f,"at":%.0f,"state":"%s","nonces":["%s"]', job.made,
      job.timestamp, at_ms, job.state, nonce)
    .. (more or '') .. '}'
end

local function message_for(job)
  if job.signed ~= '' then
    return job.signed
  end
  return '{"queue":' .. ARGV[5] .. ',"jobId":' .. cjson.encode(job.id)
    .. string.format(',"atm":%.0f,"ts":%.0f,"at":%.0f,', job.made, job.timestamp, at_ms)
    .. ARGV[6] .. '}'
end

local counted = false
-- Raised by every request, at least to the clock: no value comes back after an obliterate.
local function count_request()
  if not counted then
    counted = true
    redis.call('HSET', keys.meta, 'gqn', string.format('%.0f', math.max(requests + 1, now_us)))
  end
end

-- What was asked before and what is asked now, as one request (cancellation.md 2.2); whether this one
-- decides the outcome.  A reason is a text in here, so that none is encoded anew.
local function merged(job)
  --- include: record

  local RANK = { shutdown = 0, timeout = 1, parent = 2, remote = 2, user = 2 }

  local function is_stronger(one, other)
    local mine, theirs = RANK[one.kind] or 0, RANK[other.kind] or 0
    if mine ~= theirs then
      return mine > theirs
    end
    return not one.retry and other.retry
  end

  local function shorter(one, other)
    if type(one) ~= 'number' then
      return other
    end
    return type(other) == 'number' and math.min(one, other) or one
  end

  local MOST_SIGNED, MOST_NONCES = 8, 8
  local STRENGTH = { [true] = 3, [false] = 1 } -- of `hard`; null, the worker's mode, is between them

  -- Whether a signed request asks for all of the kill that another one asks for.
  local function covers(one, other)
    local mine, theirs = STRENGTH[one.hard] or 2, STRENGTH[other.hard] or 2
    local grace, other_grace = tonumber(one.killAfter), tonumber(other.killAfter)
    return one.key == other.key and mine >= theirs and (theirs == 1
      or grace == other_grace or (grace and other_grace and grace <= other_grace) == true)
  end

  -- The one of too many signed requests that is not kept: the oldest with a secret that the workers
  -- do not believe, else the oldest that another one covers.  So the strongest stays.
  local function spare(signed)
    local claims = {}
    for n, told in ipairs(signed) do
      claims[n] = record_in(told)
      if not is_believed(claims[n].key) then
        return n
      end
    end
    for n, claim in ipairs(claims) do
      for m, other in ipairs(claims) do
        if m ~= n and covers(other, claim) then
          return n
        end
      end
    end
    return 1
  end

  -- A merged record proves nothing: each signed request stays whole beside it (cancellation.md 8).
  local function all_signed(before)
    local signed = last_texts(before, MOST_SIGNED)
    signed[#signed + 1] = job.signed ~= '' and job.signed or nil
    while #signed > MOST_SIGNED do
      table.remove(signed, spare(signed))
    end
    return #signed > 0 and signed or nil
  end

  local before, now = job.before, cjson.decode(record_for(job))
  local nonces = last_texts(before.nonces, MOST_NONCES - 1)
  nonces[#nonces + 1] = nonce
  local decides = is_stronger(now, before)
  local base, other = decides and now or before, decides and before or now
  if base.hard ~= true and other.hard ~= false then
    base.hard = other.hard
  end
  if other.default_grace and base.default_grace ~= true then -- true, 'mode' or false
    base.default_grace = other.default_grace
  end
  base.kill_after = shorter(base.kill_after, other.kill_after)
  base.retry = base.retry and other.retry
  base.waits = base.waits or other.waits
  base.nonce, base.nonces = nonce, nonces
  base.signed = all_signed(before.signed)
  local written, record = pcall(cjson.encode, base)
  if written then -- what somebody else wrote there, as NaN, is no JSON: then this request stands alone
    return record, decides
  end
end

local function ask(job)
  local before, record, decides = job.before, nil, true
  if before and before.v == 1 and (before.atm == job.made or not before.retry) then -- of this run
    record, decides = merged(job)
  end
  if not record then
    if job.asked then
      --- include: remember
      remember(job.key, job.asked)
    end
    local signed = job.signed ~= '' and ',"signed":' .. cjson.encode({ job.signed })
    record, decides = record_for(job, signed), true
  end
  if decides and not is_for_run then
    redis.call('HSET', job.key, 'gqc', record, 'defa', text)
  else
    redis.call('HSET', job.key, 'gqc', record)
  end
  count_request()
  tell('event', 'cancel-requested', 'jobId', job.id, 'reason', reason, 'kind', 'remote',
    'nonce', nonce)
  messages[#messages + 1] = { job.lock or '', message_for(job) }
end

-- What ends a job, and what files those that were ended: made where there is one.
local function ways_to_end()
  --- include: place
  --- include: remove
  --- include: keep
  --- include: remember

  local filed = {} -- by removal policy

  -- The option of a job that says what stays of it (8.5): {count, age, limit}, or nil for all.
  local function removal_policy(job)
    local policy = record_in(job.opts).removeOnFail
    if policy == true then
      return { 0, -1, 0 }
    elseif type(policy) == 'number' then
      return { math.max(0, math.floor(policy)), -1, 0 }
    elseif type(policy) == 'table' then
      local number = function(value, default)
        return type(value) == 'number' and math.max(0, math.floor(value)) or default
      end
      local kept = { number(policy.count, -1), number(policy.age, -1), number(policy.limit, 1000) }
      if kept[1] >= 0 or kept[2] >= 0 then
        return kept
      end
    end
  end

  local function answer_later(job)
    redis.call('HSET', keys.answers, job.id,
      cjson.encode({ status = job.status, state = job.state }))
    redis.call('PEXPIRE', keys.answers, 60000)
  end

  -- A deduplication without a time limit ends with its owner (9.2).
  local function end_deduplication(job)
    local owned = job.dedup and keys.base .. 'de:' .. job.dedup
    if owned and redis.pcall('GET', owned) == job.id and redis.call('PTTL', owned) == -1 then
      redis.call('DEL', owned)
    end
  end

  -- What was asked of the run before has no effect any more.
  local function forget_request(job)
    redis.call('HDEL', job.key, 'gqc', 'defa')
    if job.asked then
      remember(job.key, job.asked)
    end
  end

  -- Fail the job for good; `made` only for one that was running.
  local function fail(job, prev, made)
    end_deduplication(job)
    local policy = removal_policy(job)
    if policy and policy[1] == 0 then
      delete_job_keys(job.key)
      answer_later(job)
    else
      local record = record_for(job)
      forget_request(job)
      local shown = not made or not is_for_run -- else it was for that run alone (cancellation.md 4.4)
      redis.call('HSET', job.key, 'failedReason', text, 'finishedOn', now_ms)
      if shown then
        redis.call('HSET', job.key, 'gqe', record)
      end
      local answered = not shown and record or job.ended
      if answered then
        remember(job.key, answered)
      end
      if made then
        redis.call('HSET', job.key, 'atm', made)
      end
      local name = policy and table.concat(policy, ',') or ''
      filed[name] = filed[name] or { members = {}, now_ms = now_ms, policy = policy }
      local members = filed[name].members
      members[#members + 1], members[#members + 2] = now_ms, job.id
    end
    tell('event', 'failed', 'jobId', job.id, 'failedReason', text, 'prev', prev)
  end

  local function told_cancelled(job)
    tell('event', 'cancelled', 'jobId', job.id, 'reason', reason, 'kind', 'remote', 'stage', 'settled',
      'ms', '0')
  end

  local function cancel(job)
    if job.place ~= 'wait' then
      redis.call('ZREM', keys[job.place], job.id)
    end
    fail(job, job.place)
    told_cancelled(job)
  end

  -- The run ends here, whatever its worker does: without the lock its outcome is refused
  -- (cancellation.md 3.4).
  local function take_away(job)
    redis.call('DEL', job.key .. ':lock')
    redis.call('SREM', keys.stalled, job.id)
    redis.call('LREM', keys.active, 1, job.id)
    local made = job.made + 1
    messages[#messages + 1] = { job.lock or '', message_for(job) }
    count_request()
    if job.then_what == 'f' or job.then_what == 'x' then
      fail(job, 'active', made)
      if job.then_what == 'x' then
        tell('event', 'retries-exhausted', 'jobId', job.id, 'attemptsMade', made)
      end
    else
      local delay = tonumber(job.then_what)
      forget_request(job)
      redis.call('HSET', job.key, 'failedReason', text, 'atm', made)
      if delay > 0 then
        local due_ms = now_ms + delay
        redis.call('HSET', job.key, 'delay', delay)
        redis.call('ZADD', keys.delayed, delayed_score(keys, due_ms), job.id)
        tell('event', 'delayed', 'jobId', job.id, 'delay', due_ms)
        mark_next_delayed(keys)
      else
        enqueue(keys, job.id, priority_in(job.priority))
        tell('event', 'waiting', 'jobId', job.id, 'prev', 'active')
      end
    end
    told_cancelled(job)
    answer_later(job)
    wake_unless_blocked(keys) -- a slot of a queue with a limit is free, or this job waits
  end

  local function finish(job)
    if job.status == 'cancelled' then
      cancel(job)
    else
      take_away(job)
    end
  end

  local function file()
    for _, group in pairs(filed) do
      for first = 1, #group.members, 4000 do
        local part = {}
        for i = first, math.min(first + 3999, #group.members) do
          part[#part + 1] = group.members[i]
        end
        file_finished(keys, keys.failed,
          { members = part, now_ms = now_ms, policy = group.policy })
      end
    end
  end

  return finish, file
end

local finish, file
if has_ends and not is_dry then
  finish, file = ways_to_end()
end

local replies = {}
for n = 1, count do
  local job = jobs[n]
  if not is_dry and not job.done and job.place then
    job.done = true
    if job.status == 'requested' then
      ask(job)
    elseif job.status == 'cancelled' or job.status == 'stopped' then
      finish(job)
    end
  end
  -- A worker that listens is named by its lock token, any other one by what it calls itself.
  local worker = job.lock and string.match(job.lock, '^gq:(.+):%d+$') or job.worker
  replies[n] = { job.status, job.state or 'unknown', job.place == 'active' and worker or '' }
end

-- -- file, tell -------------------------------------------------------------------------------

if file then
  file()
end

for _, message in ipairs(messages) do
  local listener = string.match(message[1], '^gq:(.+):%d+$')
  local reached = listener and redis.pcall('PUBLISH', 'bullmq:cancel:' .. listener, message[2])
  if type(reached) ~= 'number' or reached == 0 then
    redis.pcall('PUBLISH', 'bullmq:cancel', message[2])
  end
end
return replies

-- Cancel jobs, in whatever state each of them is (cancellation.md 4.1-4.5, 5.1): what does not run
-- is failed here and now, what runs gets the request recorded, or is taken away from its worker.
--
-- Phases look (at the queue's keys), judge (where each job is, and what that means), take out (of
--        wait, all in one pass), carry out (ask, or finish), file (into failed), tell (messages,
--        last: a refused PUBLISH undoes nothing).  Each has its fragment in `fragments/cancel/`.
--
-- KEYS   wait paused active prioritized delayed waiting_children completed failed stalled meta pc
--        marker events schedulers answers
-- Also   <id> :lock :logs :dependencies :processed :failed :unsuccessful de: repeat: meta: gq:
-- ARGV   1 key base  2 now in ms
--        3 the request as JSON: a record (cancellation.md 4.3) without `atm`, `ts`, `at`, `state`,
--          `nonces`, `signed`
--        4 the text that the job fails with  5 queue name as JSON
--        6 more members of a message, as JSON without the braces
--        7 some of: 'f' take running jobs away, 'k' kill these runs, 'd' only tell what would happen,
--          'r' for this run only
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
--- include: listener

keys.base = ARGV[1]
local now_ms = tonumber(ARGV[2])
local text, nonce, reason = ARGV[4], ARGV[9], ARGV[10]
local forces, is_dry = string.find(ARGV[7], 'f') ~= nil, string.find(ARGV[7], 'd') ~= nil
local is_for_run, kills = string.find(ARGV[7], 'r') ~= nil, string.find(ARGV[7], 'k') ~= nil
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

--- include: cancel/look

-- The server's clock, which stands still while a script runs.
local clock = redis.call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local at_ms = math.floor(now_us / 1000)

-- -- judge ------------------------------------------------------------------------------------
--- include: cancel/judge

local jobs, in_wait = {}, {}
local has_ends = false -- of jobs, here and now
local function judge_all()
  look()
  if forces then
    look_at_all()
  end
  local seen = {}
  for n = 1, count do
    local job = read_job(n)
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

-- -- take out ---------------------------------------------------------------------------------

-- The first write frees or changes nothing, so that a full server lets the rest be written.
if not is_dry then
  redis.call('DEL', keys.base .. 'meta:none')
end

--- include: cancel/take_out
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

--- include: cancel/ask
--- include: cancel/finish

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
  local worker = job.lock and string.match(job.lock, LISTENER) or job.worker
  replies[n] = { job.status, job.state or 'unknown', job.place == 'active' and worker or '' }
end

-- -- file, tell -------------------------------------------------------------------------------

if file then
  file()
end

for _, message in ipairs(messages) do
  local listener = string.match(message[1], LISTENER)
  local reached = listener and redis.pcall('PUBLISH', 'bullmq:cancel:' .. listener, message[2])
  if type(reached) ~= 'number' or reached == 0 then
    redis.pcall('PUBLISH', 'bullmq:cancel', message[2])
  end
end
return replies

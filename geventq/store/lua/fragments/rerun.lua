-- Outcomes after which a job will run again: retries, delays, moves, jobs that are given back.
-- Answers what carries out one of them, and what has to follow the last one.
local function make_rerun(keys, now_ms, max_events)
  --- include: job
  --- include: give_back
  local promoted, woken, delayed_some = false, false, false
  -- By priority: {id, how far it stood from the left end of active, turn of its take}.
  local given_back = {}
  local mates = nil -- turns by id: what its worker may have given back in other calls

  local function tell(...)
    redis.call('XADD', keys.events, 'MAXLEN', '~', max_events, '*', 'event', ...)
  end

  -- What stays in the hash.  Fields of a failure only where it failed; a move leaves `atm` as it is,
  -- because its attempt does not count.
  local function write_attempt(job_key, value, made, more)
    if value ~= '' then
      redis.call('HSET', job_key, 'failedReason', value, 'stacktrace', more.stack, 'atm', made)
    elseif not more.move then
      redis.call('HSET', job_key, 'atm', made)
    end
    if more.clear then
      --- include: answered
      clear_request(job_key, more)
    end
  end

  -- Run again now, behind the others (9.6), or in front of them (9.8).
  local function requeue(kind, job_id, job_key, more)
    local priority = priority_of(job_key)
    enqueue(keys, job_id, priority, kind == 'w' or (priority == 0 and more.lifo))
    woken = woken or priority == 0 or kind == 'r'
    tell('waiting', 'jobId', job_id, 'prev', 'active')
  end

  -- Not taken at all, as far as anybody can tell (cancellation.md 7.1).  Where it goes is seen to
  -- for all that are given back, by their order.
  local function prepare_give_back(job_id, job_key, more, place)
    local started = redis.pcall('HINCRBY', job_key, 'ats', -1)
    if type(started) == 'table' or started <= 0 then
      redis.call('HDEL', job_key, 'ats')
    end
    local priority = priority_of(job_key)
    local group = given_back[priority] or {}
    given_back[priority] = group
    group[#group + 1] = { job_id, place, more.turn }
    mates = mates or more.mates
    tell('waiting', 'jobId', job_id, 'prev', 'active')
  end

  -- Run again later: backoff, or the processor's own wish (9.7).
  local function delay(job_id, job_key, ended_ms, more)
    local due_ms = tonumber(ended_ms) + more.delay
    redis.call('HSET', job_key, 'delay', more.delay)
    redis.call('ZADD', keys.delayed, delayed_score(keys, due_ms), job_id)
    tell('delayed', 'jobId', job_id, 'delay', due_ms)
    delayed_some = true
  end

  local function rerun(kind, job_id, ended_ms, value, made, more, place)
    local job_key = keys.base .. job_id
    if not is_job(job_key) then
      return -20
    end
    if kind == 'r' and not promoted then
      promoted = true
      --- include: promote
      promote_due(keys, now_ms, is_blocked(keys))
    end
    write_attempt(job_key, value, made, more)
    if kind == 'd' then
      delay(job_id, job_key, ended_ms, more)
    elseif kind == 'b' then
      prepare_give_back(job_id, job_key, more, place)
    else
      requeue(kind, job_id, job_key, more)
    end
    return 0
  end

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

  -- Whether there is something new in delayed.
  local function end_reruns()
    give_all_back()
    if woken then
      wake_unless_blocked(keys)
    end
    return delayed_some
  end

  return rerun, end_reruns
end

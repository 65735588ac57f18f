-- Jobs are ended: those that do not run, and those that are taken away from their workers.

-- What ends a job, and what files those that were ended: made where there is one.
local function ways_to_end()
  --- include: place
  --- include: remove
  --- include: keep
  --- include: remember

  local filed = {} -- by removal policy
  local policies = {} -- by the options that say them; false for none

  -- What options say of what stays of a job (8.5): {count, age, limit}, or nil for all.
  local function read_policy(options)
    local policy = record_in(options).removeOnFail
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

  local function removal_policy(job)
    local options = job.opts or ''
    if policies[options] == nil then
      policies[options] = read_policy(options) or false
    end
    return policies[options]
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
    if job.asked or job.deferred then
      redis.call('HDEL', job.key, 'gqc', 'defa')
    end
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
      if shown then
        redis.call('HSET', job.key, 'failedReason', text, 'finishedOn', now_ms, 'gqe', record)
      else
        redis.call('HSET', job.key, 'failedReason', text, 'finishedOn', now_ms)
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
    local made, message = job.made + 1, message_for(job)
    messages[#messages + 1] = { job.lock or '', message }
    if kills and job.lock and string.find(job.lock, LISTENER) then
      -- Its worker finds it where it finds the lock gone, if it does not hear the message.  A key of
      -- another type there holds nothing up.
      local taken = keys.base .. 'gq:taken:' .. job.lock
      redis.pcall('HSET', taken, 'message', message)
      redis.pcall('PEXPIRE', taken, 60000)
    end
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

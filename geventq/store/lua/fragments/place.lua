--- include: meta
--- include: wake

-- Putting jobs into wait, prioritized and delayed (wire-format 2.2, 2.3, 7).

local PRIORITY_STEP = 4294967296 -- 2^32
local DELAY_STEP = 4096

-- Tell one idle worker that there may be a job, unless nobody could take it now.
local function wake_unless_blocked(keys)
  if not is_blocked(keys) then
    wake(keys)
  end
end

-- Tell idle workers when the head of delayed is due (also while paused: wire-format 7 b), by the
-- marker `1` unless another one is given.  Whether there is one.
local function mark_next_delayed(keys, member)
  local head = redis.call('ZRANGE', keys.delayed, 0, 0, 'WITHSCORES')
  if head[2] then
    redis.call('ZADD', keys.marker, tonumber(head[2]) / DELAY_STEP, member or '1')
  end
  return head[2] ~= nil
end

-- The score of a job due at `due_ms`, behind the others of the same millisecond.  Of those there is
-- room for 4,096; what is too much goes to the next one, so that it keeps its order.  From 2^41 ms
-- on (2039) the scores have no room for an order (wire-format 2.2).
local full_until = {} -- by due time: what this call knows to be full

local function delayed_score(keys, due_ms)
  local ms = full_until[due_ms] or due_ms
  while true do
    local low = ms * DELAY_STEP
    local high = low + DELAY_STEP - 1
    local last = redis.call('ZREVRANGEBYSCORE', keys.delayed, high, low, 'WITHSCORES',
      'LIMIT', 0, 1)
    if not last[2] then
      return low
    elseif tonumber(last[2]) < high or ms >= 2199023255552 then
      return math.min(tonumber(last[2]) + 1, high)
    end
    ms = ms + 1
    full_until[due_ms] = ms
  end
end

-- The next `many` numbers that keep jobs of equal priority in order; answers the last of them.
-- A counter that is none begins anew.
local function next_counter(keys, many)
  local counter = redis.pcall('INCRBY', keys.pc, many)
  if type(counter) == 'table' then
    redis.call('DEL', keys.pc)
    counter = redis.call('INCRBY', keys.pc, many)
  end
  return counter % PRIORITY_STEP
end

-- Let a job wait by its priority (0: none), behind its equals or, with `first`, in front of them.
-- The caller wakes a worker.
local function enqueue(keys, job_id, priority, first)
  if priority == 0 then
    redis.call(first and 'RPUSH' or 'LPUSH', keys.wait, job_id)
  else
    local counter = first and 0 or next_counter(keys, 1)
    redis.call('ZADD', keys.prioritized, priority * PRIORITY_STEP + counter, job_id)
  end
end

-- What a job's hash says of its priority, as a number that scores have room for; foreign text says
-- nothing.
local function priority_in(text)
  return math.min(number_in(text) or 0, 2097152)
end

local function priority_of(job_key)
  return priority_in(redis.call('HGET', job_key, 'priority'))
end

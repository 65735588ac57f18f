-- Putting jobs into wait, prioritized and delayed (wire-format 2.2, 2.3, 7).

local PRIORITY_STEP = 4294967296 -- 2^32
local DELAY_STEP = 4096

-- Tell one idle worker that there may be a job; nobody could take it while blocked.
local function wake(marker_key, blocked)
  if not blocked then
    redis.call('ZADD', marker_key, 0, '0')
  end
end

-- Tell idle workers when the head of delayed is due (also while paused: wire-format 7 b).
local function mark_next_delayed(delayed_key, marker_key)
  local head = redis.call('ZRANGE', delayed_key, 0, 0, 'WITHSCORES')
  if head[2] then
    redis.call('ZADD', marker_key, tonumber(head[2]) / DELAY_STEP, '1')
  end
end

-- The score of a job due at `due_ms`, behind the others of the same millisecond.
local function delayed_score(delayed_key, due_ms)
  local low = due_ms * DELAY_STEP
  local high = (due_ms + 1) * DELAY_STEP - 1
  local last = redis.call('ZREVRANGEBYSCORE', delayed_key, high, low, 'WITHSCORES', 'LIMIT', 0, 1)
  if last[2] then
    return math.min(tonumber(last[2]) + 1, high)
  end
  return low
end

-- Behind the jobs of equal priority.  A counter that is none begins anew.
local function push_prioritized(prioritized_key, pc_key, job_id, priority)
  local counter = redis.pcall('INCR', pc_key)
  if type(counter) == 'table' then
    redis.call('DEL', pc_key)
    counter = redis.call('INCR', pc_key)
  end
  local score = priority * PRIORITY_STEP + counter % PRIORITY_STEP
  redis.call('ZADD', prioritized_key, score, job_id)
end

-- In front of the jobs of equal priority.
local function push_prioritized_first(prioritized_key, job_id, priority)
  redis.call('ZADD', prioritized_key, priority * PRIORITY_STEP, job_id)
end

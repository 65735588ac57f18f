--- include: bound
--- include: place

-- Putting jobs back where they came from, in front (cancellation.md 7.1).  `ids` are those of one
-- priority, in the order in which they were taken.

-- Counters below those of the jobs that wait with this priority.  Where these begin too low, because
-- `pc` has begun anew meanwhile, they move up; if there are more than `MOST` they do not, and the
-- ids share the lowest counter.
local function give_back_prioritized(keys, ids, priority)
  local low = priority * PRIORITY_STEP
  local others = redis.call('ZRANGEBYSCORE', keys.prioritized, low, low + PRIORITY_STEP - 1,
    'WITHSCORES', 'LIMIT', 0, MOST)
  local first
  if #others == 0 then
    first = low + next_counter(keys, #ids) - #ids + 1
  else
    first = tonumber(others[2]) - #ids
    if first < low and #others < 2 * MOST then
      next_counter(keys, #ids) -- later ones come behind those that move now
      for i = 1, #others, 2 do
        redis.call('ZADD', keys.prioritized, tonumber(others[i + 1]) + #ids, others[i])
      end
      first = first + #ids
    end
  end
  for n, job_id in ipairs(ids) do
    redis.call('ZADD', keys.prioritized, math.max(low, first + n - 1), job_id)
  end
end

-- Takes out of the front those that a worker has given back in earlier calls (`mates`: the turns of
-- their takes by id), so that they can stand among those that it gives back now: {id, nil, turn}.
-- None stands behind a job that is not among them.
local function lift_mates(keys, mates, priority)
  local front, found = {}, {}
  if priority > 0 then
    local low = priority * PRIORITY_STEP
    front = redis.call('ZRANGEBYSCORE', keys.prioritized, low, low + PRIORITY_STEP - 1, 'LIMIT', 0, MOST)
  else
    local right = redis.call('LRANGE', keys.wait, -MOST, -1)
    for n = #right, 1, -1 do
      front[#front + 1] = right[n]
    end
  end
  for _, job_id in ipairs(front) do
    if not mates[job_id] then
      break
    end
    found[#found + 1] = { job_id, nil, mates[job_id] }
    if priority > 0 then
      redis.call('ZREM', keys.prioritized, job_id)
    end
  end
  if priority == 0 and #found > 0 then
    redis.call('LTRIM', keys.wait, 0, -#found - 1)
  end
  return found
end

local function give_back(keys, ids, priority)
  if priority > 0 then
    give_back_prioritized(keys, ids, priority)
    return
  end
  for n = #ids, 1, -1 do -- from the right end they are taken again
    redis.call('RPUSH', keys.wait, ids[n])
  end
end

--- include: remove

-- Filing finished jobs by their removal policy (wire-format 8.5).  Jobs that follow each other
-- with equal policies are filed together; the policy of the last one trims the set once.
-- A policy is {count or -1, age in s or -1, limit}; nil keeps all.

local function remove_jobs(base, ids)
  for _, job_id in ipairs(ids) do
    delete_job_keys(base .. job_id)
  end
end

local function trim_by_age(base, set_key, now_ms, age, limit)
  local oldest = now_ms - age * 1000
  local ids = redis.call('ZREVRANGEBYSCORE', set_key, oldest, 0, 'LIMIT', 0, limit)
  remove_jobs(base, ids)
  if #ids < limit then
    redis.call('ZREMRANGEBYSCORE', set_key, 0, oldest)
  elseif #ids > 0 then
    for first = 1, #ids, 5000 do
      redis.call('ZREM', set_key, unpack(ids, first, math.min(first + 4999, #ids)))
    end
  end
end

-- A policy that is new to a long set must not stop the server: what is too much goes over several
-- calls, each taking more than it files.
local function trim_by_count(base, set_key, count, filed_count)
  local surplus = redis.call('ZCARD', set_key) - count
  if surplus > 0 then
    local last = math.min(surplus, filed_count + 1000) - 1
    remove_jobs(base, redis.call('ZRANGE', set_key, 0, last))
    redis.call('ZREMRANGEBYRANK', set_key, 0, last)
  end
end

local function file_finished(base, set_key, filed)
  if #filed.members == 0 then
    return
  end
  redis.call('ZADD', set_key, unpack(filed.members))
  local policy = filed.policy
  if policy then
    if policy[2] >= 0 then
      trim_by_age(base, set_key, filed.now_ms, policy[2], policy[3])
    end
    if policy[1] > 0 then
      trim_by_count(base, set_key, policy[1], #filed.members / 2)
    end
  end
  filed.members = {}
end

--- include: bound
--- include: remove

-- Filing finished jobs by their removal policy (wire-format 8.5).  Jobs that follow each other
-- with equal policies are filed together; the policy of the last one trims the set once.
-- A policy is {count or -1, age in s or -1, limit}; nil keeps all.

-- What a policy that is new to a long set finds too much goes over several calls: each may remove
-- as many as it files and `MOST` more, whatever the policies of its jobs are.
local removals = MOST

local function remove_finished(keys, set_key, ids)
  removals = removals - #ids
  for _, job_id in ipairs(ids) do
    delete_job_keys(keys.base .. job_id)
  end
  for first = 1, #ids, 5000 do
    redis.call('ZREM', set_key, unpack(ids, first, math.min(first + 4999, #ids)))
  end
end

local function trim_by_age(keys, set_key, oldest, limit)
  if limit < 0 or limit > removals then
    limit = removals
  end
  remove_finished(keys, set_key,
    redis.call('ZREVRANGEBYSCORE', set_key, oldest, 0, 'LIMIT', 0, limit))
end

local function trim_by_count(keys, set_key, count)
  local surplus = math.min(redis.call('ZCARD', set_key) - count, removals)
  if surplus > 0 then
    remove_finished(keys, set_key, redis.call('ZRANGE', set_key, 0, surplus - 1))
  end
end

-- Write the ends that were noted in `filed`, {members, policy, now_ms}, and trim the set.
local function file_finished(keys, set_key, filed)
  local members, policy = filed.members, filed.policy
  if #members == 0 then
    return
  end
  redis.call('ZADD', set_key, unpack(members))
  filed.members = {}
  if not policy then
    return
  end
  removals = removals + #members / 2
  if policy[2] >= 0 then
    trim_by_age(keys, set_key, filed.now_ms - policy[2] * 1000, policy[3])
  end
  if policy[1] > 0 then
    trim_by_count(keys, set_key, policy[1])
  end
end

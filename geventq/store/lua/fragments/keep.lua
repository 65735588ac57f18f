--- include: bound

-- Filing finished jobs by their removal policy (wire-format 8.5).  Jobs that follow each other
-- with equal policies are filed together; the policy of the last one trims the set once.
-- A policy is {count or -1, age in s or -1, limit}; nil keeps all.

-- What a policy that is new to a long set finds too much goes over several calls: each may remove
-- as many as it files and `MOST` more, whatever the policies of its jobs are.
local removals = MOST

local function trim_finished(keys, set_key, policy, now_ms)
  --- include: remove
  local function remove(ids)
    removals = removals - #ids
    for _, job_id in ipairs(ids) do
      delete_job_keys(keys.base .. job_id)
    end
    for first = 1, #ids, 5000 do
      redis.call('ZREM', set_key, unpack(ids, first, math.min(first + 4999, #ids)))
    end
  end
  if policy[2] >= 0 then
    local limit = policy[3]
    if limit < 0 or limit > removals then
      limit = removals
    end
    remove(redis.call('ZREVRANGEBYSCORE', set_key, now_ms - policy[2] * 1000, '0', 'LIMIT', '0', limit))
  end
  if policy[1] > 0 then
    local surplus = math.min(redis.call('ZCARD', set_key) - policy[1], removals)
    if surplus > 0 then
      remove(redis.call('ZRANGE', set_key, '0', surplus - 1))
    end
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
  if policy then
    removals = removals + #members / 2
    trim_finished(keys, set_key, policy, filed.now_ms)
  end
end

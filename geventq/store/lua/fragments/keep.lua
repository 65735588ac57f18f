--- include: bound

-- Filing finished jobs by their removal policy (wire-format 8.5).  Jobs that follow each other
-- with equal policies are filed together; the policy of the last one trims the set once.
-- A policy is {count or -1, age in s or -1, limit}; nil keeps all.

-- What a policy that is new to a long set finds too much goes over several calls: each may remove
-- as many as it files and `MOST` more, whatever the policies of its jobs are.
local removals = MOST

-- Write the ends that were noted in `filed`, {members, policy, now_ms}, and trim the set.
local function file_finished(keys, set_key, filed)
  local members, policy = filed.members, filed.policy
  if #members == 0 then
    return
  end
  redis.call('ZADD', set_key, unpack(members))
  if policy then
    filed.members = {}
    removals = removals + #members / 2
    --- include: trim
    trim_finished(keys, set_key, policy, filed.now_ms)
  end
end

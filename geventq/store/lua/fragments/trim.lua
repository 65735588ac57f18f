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

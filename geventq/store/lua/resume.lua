-- Let workers take jobs again (wire-format 9.11); a `paused` list of version 5 is merged.
--
-- KEYS   meta marker events paused wait prioritized delayed
-- ARGV   1 '1' = this is the first call of a resume
-- Reply  how many ids are left in `paused`: call again until 0
-- Events resumed, once
--- include: place
--- include: types

local wrong = wrong_type(keys)
if wrong then
  return wrong
end
redis.call('HDEL', keys.meta, 'paused') -- first: a full Redis lets it pass
if redis.call('EXISTS', keys.paused) == 1 then
  if redis.call('EXISTS', keys.wait) == 0 then
    redis.call('RENAME', keys.paused, keys.wait)
  else
    redis.call('RPUSH', keys.wait, unpack(redis.call('LRANGE', keys.paused, 0, 6999)))
    redis.call('LTRIM', keys.paused, 7000, -1)
  end
end
if redis.call('LLEN', keys.wait) + redis.call('ZCARD', keys.prioritized) > 0 then
  wake(keys)
else
  mark_next_delayed(keys)
end
if ARGV[1] == '1' then
  redis.call('XADD', keys.events, '*', 'event', 'resumed')
end
return redis.call('LLEN', keys.paused)

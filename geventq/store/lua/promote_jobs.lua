-- Let delayed jobs run now (wire-format 9.12).  As BullMQ does it, they all go to wait, whatever
-- their priority, and keep their `delay` field.
--
-- KEYS   delayed wait marker meta active events
-- ARGV   none
-- Reply  {how many went, 1 if there may be more: call again}
-- Events waiting
--- include: bound
--- include: place
--- include: types

local wrong = wrong_type(keys)
if wrong then
  return wrong
end
local ids = redis.call('ZRANGE', keys.delayed, 0, MOST - 1)
if #ids > 0 then
  redis.call('ZREM', keys.delayed, unpack(ids))
  redis.call('LPUSH', keys.wait, unpack(ids))
  local length = max_len(keys)
  for _, job_id in ipairs(ids) do
    redis.call('XADD', keys.events, 'MAXLEN', '~', length, '*', 'event', 'waiting',
      'jobId', job_id, 'prev', 'delayed')
  end
  wake_unless_blocked(keys)
end
return { #ids, #ids == MOST and 1 or 0 }

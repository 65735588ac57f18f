-- Append a row to a job's log (wire-format 9.19; cancellation.md 3.4).
--
-- KEYS   job lock logs
-- ARGV   1 row  2 how many rows to keep, 0 = all  3 lock token that must hold, '' = anybody
-- Reply  how many rows there are, -1 no such job, -6 the lock is gone or another's
-- Events none
--- include: owner
--- include: types

local wrong = wrong_type(keys)
if wrong then
  return wrong
end
local code = may_write(keys.job, keys.lock, ARGV[3])
if code ~= 0 then
  return code
end
local length = redis.call('RPUSH', keys.logs, ARGV[1])
local keep = tonumber(ARGV[2])
if keep > 0 then
  redis.call('LTRIM', keys.logs, -keep, -1)
  return math.min(keep, length)
end
return length

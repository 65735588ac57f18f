-- Delete a job's log, but for its last rows (wire-format 9.19).
--
-- KEYS   job logs
-- ARGV   1 how many rows to keep
-- Reply  0 done, -1 no such job
-- Events none
--- include: job
--- include: types

local wrong = wrong_type(keys)
if wrong then
  return wrong
end
if not is_job(keys.job) then
  return -1
end
local keep = tonumber(ARGV[1])
if keep > 0 then
  redis.call('LTRIM', keys.logs, -keep, -1)
else
  redis.call('UNLINK', keys.logs)
end
return 0

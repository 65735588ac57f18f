-- Delete a job's log, but for its last rows (wire-format 9.19).
--
-- KEYS   1 job hash  2 logs
-- ARGV   1 how many rows to keep
-- Reply  0 done, -1 no such job
-- Events none
-- key count: 2
--- include: job

if not is_job(KEYS[1]) then
  return -1
end
local keep = tonumber(ARGV[1])
if keep > 0 then
  redis.call('LTRIM', KEYS[2], -keep, -1)
else
  redis.call('DEL', KEYS[2])
end
return 0

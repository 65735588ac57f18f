-- A deduplication ends with the job that owns it, if it is `job_id`; `dedup` is that job's `deid`.
local function free_deduplication(base, job_id, dedup)
  if dedup and redis.pcall('GET', base .. 'de:' .. dedup) == job_id then
    redis.call('DEL', base .. 'de:' .. dedup, base .. 'dn:' .. dedup)
  end
end

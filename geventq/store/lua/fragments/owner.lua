--- include: job

-- Whether a writer may touch a job: it exists, and the lock token, if one is given, holds it
-- (cancellation.md 3.4).  Answers 0, -1 or -6.
local function may_write(job_key, lock_key, lock_token)
  if not is_job(job_key) then
    return -1
  end
  if lock_token ~= '' and redis.call('GET', lock_key) ~= lock_token then
    return -6
  end
  return 0
end

-- Deleting a job with all its keys but the lock (wire-format 1, 8.8).  A long log does not hold up
-- the server: UNLINK frees it in the background.
local function delete_job_keys(job_key)
  return redis.call('UNLINK', job_key, job_key .. ':logs', job_key .. ':dependencies',
    job_key .. ':processed', job_key .. ':failed', job_key .. ':unsuccessful')
end

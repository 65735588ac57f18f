-- The recorded request was answered (cancellation.md 4.4).  What it was stays: of one that ended the
-- job for good it is shown, and a call that comes again is known by it, whatever the job does by then
-- (cancellation.md 3.6).  One that was for this run alone has ended nothing else, whoever did.
local function clear_request(job_key, more)
  local record = redis.call('HGET', job_key, 'gqc')
  redis.call('HDEL', job_key, 'gqc', 'defa')
  if record then
    local read, told = pcall(cjson.decode, record)
    local is_shown = more.shown and read and type(told) == 'table' and told.retry == false
    redis.call('HSET', job_key, is_shown and 'gqe' or 'gqa', record)
  end
end

-- Tell one idle worker that there may be a job.
local function wake(keys)
  redis.call('ZADD', keys.marker, '0', '0')
end

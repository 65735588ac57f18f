-- Reading the queue's meta hash (wire-format 5, 8.1, 8).  Foreign text is as good as none.

-- The approximate length of the event stream; written where nobody has said it yet.
local function max_len(meta_key)
  local length = redis.call('HGET', meta_key, 'opts.maxLenEvents')
  if not length then
    length = '10000'
    redis.call('HSET', meta_key, 'opts.maxLenEvents', length)
  elseif not string.match(length, '^%d+$') then
    length = '10000'
  end
  return length
end

-- Whether the queue is paused, and how many jobs may run in all, or nil.
local function read_meta(meta_key)
  local meta = redis.call('HMGET', meta_key, 'paused', 'concurrency')
  return meta[1] ~= false, tonumber(meta[2])
end

-- Whether no job may be taken now: the queue is paused, or as many run as may.
local function is_blocked(meta_key, active_key)
  local paused, most = read_meta(meta_key)
  return paused or (most ~= nil and redis.call('LLEN', active_key) >= most)
end

-- Reading the queue's meta hash (wire-format 5, 8.1, 8).

-- The approximate length of the event stream; written where nobody has said it yet.
local function max_len(meta_key)
  local length = redis.call('HGET', meta_key, 'opts.maxLenEvents')
  if not length then
    length = '10000'
    redis.call('HSET', meta_key, 'opts.maxLenEvents', length)
  end
  return length
end

-- Whether no job may be taken now: the queue is paused, or as many run as may.
local function is_blocked(meta_key, active_key)
  local meta = redis.call('HMGET', meta_key, 'paused', 'concurrency')
  if meta[1] then
    return true
  end
  return meta[2] ~= false and redis.call('LLEN', active_key) >= tonumber(meta[2])
end

--- include: number
--- include: limit

-- Reading the queue's meta hash (wire-format 5, 8.1, 8).  Foreign text is as good as none.

-- The approximate length of the event stream; written where nobody has said it yet.  `length` is
-- the option, if it was read already.
local function max_len(keys, length)
  if length == nil then
    length = redis.call('HGET', keys.meta, 'opts.maxLenEvents')
  end
  if not length then
    redis.call('HSET', keys.meta, 'opts.maxLenEvents', '10000')
  end
  return digits_in(length) or '10000'
end

-- Whether the queue is paused, how many jobs may run in all, or nil, and the count of the requests
-- to cancel that running jobs got: it only ever rises (cancellation.md 4.3).
local function read_meta(keys)
  local meta = redis.call('HMGET', keys.meta, 'paused', 'concurrency', 'gqn')
  return meta[1] ~= false, limit_in(meta[2]), whole_in(digits_in(meta[3]))
end

-- Whether no job may be taken now: the queue is paused, or as many run as may.
local function is_blocked(keys)
  local paused, most = read_meta(keys)
  return paused or (most ~= nil and redis.call('LLEN', keys.active) >= most)
end

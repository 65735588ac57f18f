--- include: stream

-- Looking at the types of all keys before the first write: Redis does not roll a script back
-- (cancellation.md 3.7).

local TYPES = {
  wait = 'list', active = 'list', paused = 'list', logs = 'list', prioritized = 'zset',
  delayed = 'zset', completed = 'zset', failed = 'zset', waiting_children = 'zset',
  schedulers = 'zset', marker = 'zset', stalled = 'set', stalled_check = 'string', meta = 'hash',
  events = 'stream', id = 'string', pc = 'string', lock = 'string',
  answers = 'hash', workers = 'zset', member = 'hash', replies = 'list',
}

-- The error reply for one of the script's keys that holds something else, or for a stream that takes
-- no more events, or nil.  A job's own key is not among them: what is no hash is no job.
local function wrong_type(keys)
  for name, key in pairs(keys) do
    local is_stream, unfit = false, nil
    if name == 'events' then
      is_stream, unfit = pcall(used_up, key)
    end
    if is_stream and unfit then
      return unfit
    end
    local found = TYPES[name] and not is_stream and redis.call('TYPE', key).ok
    if found and found ~= TYPES[name] and found ~= 'none' then
      return redis.error_reply('WRONGTYPE the key ' .. key .. ' holds a ' .. found .. ', not a '
        .. TYPES[name])
    end
  end
end

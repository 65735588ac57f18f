-- What a cancelling call looks at before its jobs: the queue's keys, and records.  Nothing is
-- written here.

-- The keys that a request to a running job needs are of their types; of `active` the search tells.
local function look()
  redis.call('STRLEN', keys.pc) -- none may call this but who may cancel (access.md)
  if count > 1 then
    lengths.active = redis.call('LLEN', keys.active)
  end
  local meta = redis.call('HMGET', keys.meta, 'gqn', 'opts.maxLenEvents', 'gqs')
  requests, max_events, secrets = whole_in(digits_in(meta[1])), meta[2], meta[3]
  --- include: stream
  local unfit = used_up(keys.events)
  if unfit then
    error(unfit)
  end
end

local has_looked = false
-- And so are all others, at few commands, before a job is looked for in them.
local function look_at_all()
  if has_looked then
    return
  end
  has_looked = true
  lengths.wait, lengths.paused = redis.call('LLEN', keys.wait), redis.call('LLEN', keys.paused)
  redis.call('ZINTER', 7, keys.prioritized, keys.delayed, keys.waiting_children, keys.completed,
    keys.failed, keys.schedulers, keys.base .. 'meta:none') -- never there, so that nothing is compared
  redis.call('ZCARD', keys.marker)
  redis.call('SCARD', keys.stalled)
end

-- What a record says.
local function read_record(record)
  --- include: record
  visited = visited + #record
  return record_in(record)
end

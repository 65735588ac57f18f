-- Store new jobs, many at a time, all or none (wire-format 9.1, 9.3).
--
-- Everything that can be refused is looked at before the first write, because Redis does not
-- roll a script back.  Ids are drawn in one step, the stream is trimmed and the lists are
-- pushed once a chunk, workers are woken once: a reader sees the same as from single adds.
--
-- KEYS  wait, active, prioritized, delayed, marker, events, meta, id, pc
-- ARGV  base key, now in ms, then five for each job:
--       custom id or '', name, data, opts, and '' or "timestamp or nothing;delay in ms;priority;1
--       for lifo or nothing"
-- Reply a list of ids (of a duplicate: the id that was there before)
-- Events added and then waiting or delayed for each job; duplicated for a known custom id
-- key count: 9

--- include: meta
--- include: place
--- include: types

local wait_key, active_key, prioritized_key, delayed_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local marker_key, events_key, meta_key, pc_key = KEYS[5], KEYS[6], KEYS[7], KEYS[9]
local base, now = ARGV[1], ARGV[2]
local call = redis.call

local PER_JOB = 5
local CHUNK = 1000 -- jobs between two trims: far below what one LPUSH or one trim can take

local refusal = wrong_type({
  { wait_key, 'list' }, { active_key, 'list' }, { prioritized_key, 'zset' },
  { delayed_key, 'zset' }, { marker_key, 'zset' }, { events_key, 'stream' },
  { meta_key, 'hash' }, { pc_key, 'string' },
})
if refusal then
  return refusal
end

local count = (#ARGV - 2) / PER_JOB
local blocked = is_blocked(meta_key, active_key)
local next_id = call('INCRBY', KEYS[8], count) - count
local length = max_len(meta_key)

local ids, fifo, fifo_count = {}, {}, 0
local any_ready, any_delayed = false, false

local function flush()
  if fifo_count > 0 then
    call('LPUSH', wait_key, unpack(fifo, 1, fifo_count))
    fifo_count = 0
  end
end

-- Into delayed, prioritized, or the other end of wait: what most jobs do not ask for.
local function store_rare(job_id, job_key, at)
  local timestamp, delay, priority, lifo = string.match(ARGV[at + 5], '^(.*);(.*);(.*);(.*)$')
  call('HSET', job_key, 'name', ARGV[at + 2], 'data', ARGV[at + 3], 'opts', ARGV[at + 4],
    'timestamp', timestamp == '' and now or timestamp, 'delay', delay, 'priority', priority)
  call('XADD', events_key, '*', 'event', 'added', 'jobId', job_id, 'name', ARGV[at + 2])
  if delay ~= '0' then
    local due_ms = tonumber(now) + tonumber(delay)
    call('ZADD', delayed_key, delayed_score(delayed_key, due_ms), job_id)
    call('XADD', events_key, '*', 'event', 'delayed', 'jobId', job_id, 'delay', due_ms)
    any_delayed = true
    return
  end
  if priority ~= '0' then
    push_prioritized(prioritized_key, pc_key, job_id, tonumber(priority))
  else
    flush() -- what came earlier in the call enters earlier
    call(lifo == '1' and 'RPUSH' or 'LPUSH', wait_key, job_id)
  end
  call('XADD', events_key, '*', 'event', 'waiting', 'jobId', job_id)
  any_ready = true
end

for i = 1, count do
  local at = 2 + (i - 1) * PER_JOB
  next_id = next_id + 1
  local job_id = ARGV[at + 1]
  local is_known = false
  if job_id == '' then
    job_id = string.format('%.0f', next_id)
  else
    is_known = call('EXISTS', base .. job_id) == 1
  end
  ids[i] = job_id
  if is_known then
    call('XADD', events_key, 'MAXLEN', '~', length, '*', 'event', 'duplicated', 'jobId', job_id)
  elseif ARGV[at + 5] ~= '' then
    store_rare(job_id, base .. job_id, at)
  else
    local name = ARGV[at + 2]
    call('HSET', base .. job_id, 'name', name, 'data', ARGV[at + 3], 'opts', ARGV[at + 4],
      'timestamp', now, 'delay', '0', 'priority', '0')
    call('XADD', events_key, '*', 'event', 'added', 'jobId', job_id, 'name', name)
    fifo_count = fifo_count + 1
    fifo[fifo_count] = job_id
    call('XADD', events_key, '*', 'event', 'waiting', 'jobId', job_id)
    any_ready = true
  end
  if i % CHUNK == 0 or i == count then
    flush()
    call('XTRIM', events_key, 'MAXLEN', '~', length)
  end
end

if any_ready then
  wake(marker_key, blocked)
end
if any_delayed then
  mark_next_delayed(delayed_key, marker_key)
end
return ids

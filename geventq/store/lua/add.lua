-- Store new jobs, many at a time, all or none (wire-format 9.1, 9.3).
--
-- Everything that can be refused is looked at before the first write, because Redis does not
-- roll a script back.  Ids are drawn in one step, the stream is trimmed and the lists are
-- pushed once a chunk, workers are woken once: a reader sees the same as from single adds.
--
-- KEYS  wait, active, prioritized, delayed, marker, events, meta, id, pc
-- ARGV  base key, now in ms, then eight for each job:
--       custom id or '', name, data, opts, timestamp, delay in ms, priority, '1' for lifo or ''
-- Reply a list of ids (of a duplicate: the id that was there before)
-- Events added and then waiting or delayed for each job; duplicated for a known custom id
-- key count: 9

--- include: meta
--- include: place
--- include: types

local wait_key, active_key, prioritized_key, delayed_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local marker_key, events_key, meta_key, pc_key = KEYS[5], KEYS[6], KEYS[7], KEYS[9]
local base, now_ms = ARGV[1], tonumber(ARGV[2])

local PER_JOB = 8
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
local next_id = redis.call('INCRBY', KEYS[8], count) - count
local length = max_len(meta_key)

local ids, fifo, fifo_count = {}, {}, 0
local any_ready, any_delayed = false, false

local function flush()
  if fifo_count > 0 then
    redis.call('LPUSH', wait_key, unpack(fifo, 1, fifo_count))
    fifo_count = 0
  end
end

for i = 1, count do
  local at = 2 + (i - 1) * PER_JOB
  next_id = next_id + 1
  local job_id, name = ARGV[at + 1], ARGV[at + 2]
  local custom = job_id ~= ''
  if not custom then
    job_id = string.format('%.0f', next_id)
  end
  local job_key = base .. job_id
  ids[i] = job_id
  if custom and redis.call('EXISTS', job_key) == 1 then
    redis.call('XADD', events_key, 'MAXLEN', '~', length, '*', 'event', 'duplicated',
      'jobId', job_id)
  else
    local delay, priority = ARGV[at + 6], ARGV[at + 7]
    redis.call('HSET', job_key, 'name', name, 'data', ARGV[at + 3], 'opts', ARGV[at + 4],
      'timestamp', ARGV[at + 5], 'delay', delay, 'priority', priority)
    redis.call('XADD', events_key, '*', 'event', 'added', 'jobId', job_id, 'name', name)
    if delay ~= '0' then
      local due_ms = now_ms + tonumber(delay)
      redis.call('ZADD', delayed_key, delayed_score(delayed_key, due_ms), job_id)
      redis.call('XADD', events_key, '*', 'event', 'delayed', 'jobId', job_id, 'delay', due_ms)
      any_delayed = true
    else
      if priority ~= '0' then
        push_prioritized(prioritized_key, pc_key, job_id, tonumber(priority))
      elseif ARGV[at + 8] == '' then
        fifo_count = fifo_count + 1
        fifo[fifo_count] = job_id
      else
        flush() -- what came earlier in the call enters earlier
        redis.call('RPUSH', wait_key, job_id)
      end
      redis.call('XADD', events_key, '*', 'event', 'waiting', 'jobId', job_id)
      any_ready = true
    end
  end
  if i % CHUNK == 0 or i == count then
    flush()
    redis.call('XTRIM', events_key, 'MAXLEN', '~', length)
  end
end

if any_ready then
  wake(marker_key, blocked)
end
if any_delayed then
  mark_next_delayed(delayed_key, marker_key)
end
return ids

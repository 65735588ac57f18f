-- Delete a queue with its jobs, wherever they are, and what it keeps itself (wire-format 9.17); until
-- that is done it is paused.  As with BullMQ, jobs that wait for their children stay.
--
-- KEYS   active delayed schedulers completed wait paused prioritized failed meta events marker id pc
--        stalled stalled_check workers
-- Also   <id> :lock :logs :dependencies :processed :failed :unsuccessful de: dn: repeat: metrics:
-- ARGV   1 key base  2 '1' = also if jobs run  3 '1' = this is the first call
-- Reply  1 there is more: call again, 0 it is gone, -2 jobs run
-- Events paused, once
--- include: clear

keys.base = ARGV[1]
local wrong = wrong_type(keys)
if wrong then
  return wrong
end
redis.call('DEL', keys.marker) -- first: a full Redis refuses HSET as the first write
redis.call('HSET', keys.meta, 'paused', 1)
if ARGV[3] == '1' then
  redis.call('XADD', keys.events, '*', 'event', 'paused')
end
if redis.call('LLEN', keys.active) > 0 and ARGV[2] ~= '1' then
  return -2
end

local room = MOST_CLEARED

local function is_meant(job_id)
  redis.call('DEL', keys.base .. job_id .. ':lock')
  return true
end

local function clear_place(key, is_list)
  local ids = ids_behind(key, is_list, '', room)
  clear_ids(keys, key, is_list, ids, 0, MOST_CLEARED, is_meant)
  room = room - #ids
end

local function clear_schedulers()
  local ids = redis.call('ZRANGE', keys.schedulers, 0, room - 1)
  for _, id in ipairs(ids) do
    redis.call('UNLINK', keys.base .. 'repeat:' .. id)
  end
  if #ids > 0 then
    redis.call('ZREM', keys.schedulers, unpack(ids))
  end
  room = room - #ids
end

for _, list_key in ipairs({ keys.active, keys.wait, keys.paused }) do
  if room > 0 then
    clear_place(list_key, true)
  end
end
for _, set_key in ipairs({ keys.delayed, keys.prioritized, keys.completed, keys.failed }) do
  if room > 0 then
    clear_place(set_key, false)
  end
end
if room > 0 then
  clear_schedulers()
end
if room <= 0 then
  return 1
end
redis.call('UNLINK', keys.events, keys.stalled_check, keys.stalled, keys.id, keys.pc, keys.marker,
  keys.meta, keys.workers, keys.base .. 'delay', keys.base .. 'metrics:completed',
  keys.base .. 'metrics:completed:data', keys.base .. 'metrics:failed',
  keys.base .. 'metrics:failed:data')
return 0

--- include: job
--- include: place
--- include: deduplication
--- include: remove
--- include: reserved
--- include: types

-- Deleting jobs as if they had never been (wire-format 8.7 hard, 8.8): without an event each, their
-- deduplications with them, and the parents in this queue that only waited for them.

-- The keys of the queue that a parent is in, and its id, which may hold colons.
local function home_of(parent_key, told)
  local id = string.match(parent_key, '([^:]*)$')
  local read, parent = pcall(cjson.decode, told or '')
  if read and type(parent) == 'table' and type(parent.id) == 'string'
    and parent_key == tostring(parent.queueKey) .. ':' .. parent.id then
    id = parent.id
  end
  local home = string.sub(parent_key, 1, #parent_key - #id)
  return {
    base = home, wait = home .. 'wait', active = home .. 'active', meta = home .. 'meta',
    marker = home .. 'marker', waiting_children = home .. 'waiting-children',
  }, id
end

-- Jobs that one call looks at: some 10 ms, so that nobody else waits for the server.
local MOST_CLEARED = 400

local doomed = {} -- keys that are to be deleted together

-- A job's, but for its lock (8.8).
local function doom(job_key)
  local n = #doomed
  doomed[n + 1], doomed[n + 2] = job_key, job_key .. ':logs'
  doomed[n + 3], doomed[n + 4] = job_key .. ':dependencies', job_key .. ':processed'
  doomed[n + 5], doomed[n + 6] = job_key .. ':failed', job_key .. ':unsuccessful'
end

local function delete_doomed()
  if #doomed > 0 then
    redis.call('UNLINK', unpack(doomed))
    doomed = {}
  end
end

-- What a job is cleared by: its scheduler, its parent (2), its deduplication, its moments (3).  An
-- error where there is something that is no hash: that is no job, and nobody's to delete.
local function read_for_clearing(job_key)
  return redis.pcall('HMGET', job_key, 'rjk', 'parentKey', 'parent', 'deid', 'finishedOn',
    'processedOn', 'timestamp')
end

local delete_job

-- A parent that waited for nothing else goes with its child, or runs next if it is in another queue.
local function leave_parent(keys, job_key, parent_key, told)
  if not is_job(parent_key) then
    return
  end
  local pending = parent_key .. ':dependencies'
  if redis.pcall('SREM', pending, job_key) ~= 1 or redis.call('EXISTS', pending) == 1 then
    return
  end
  local theirs, parent_id = home_of(parent_key, told)
  if wrong_type(theirs) or redis.call('ZREM', theirs.waiting_children, parent_id) == 0 then
    return
  elseif theirs.base == keys.base then
    delete_job(keys, parent_id, read_for_clearing(parent_key))
  else
    redis.call('RPUSH', theirs.wait, parent_id)
    wake_unless_blocked(theirs)
  end
end

-- `fields` is what `read_for_clearing` has found.
delete_job = function(keys, job_id, fields)
  if fields.err or is_queue_key(job_id) then
    return
  end
  local job_key = keys.base .. job_id
  if fields[2] then
    leave_parent(keys, job_key, fields[2], fields[3])
  end
  free_deduplication(keys.base, job_id, fields[4])
  doom(job_key)
  if #doomed > 1000 then
    delete_doomed()
  end
end

-- The next ids of a list or a sorted set, from where the jobs are that ran next or ended first:
-- those behind `anchor`, the last one that stayed in the calls before ('' = none did, or begin).  If
-- it has left meanwhile all are looked at again.  Answers them, and how many are before them.
local function ids_behind(list_key, is_list, anchor, many)
  if not is_list then
    local rank = anchor ~= '' and redis.call('ZRANK', list_key, anchor)
    local before = rank and rank + 1 or 0
    return redis.call('ZRANGE', list_key, before, before + many - 1), before
  end
  local length = redis.call('LLEN', list_key)
  local at = anchor ~= '' and redis.call('LPOS', list_key, anchor, 'RANK', -1)
  local before = at and length - at or 0
  local found, ids = redis.call('LRANGE', list_key, -before - many, -before - 1), {}
  if before >= length then
    found = {}
  end
  for n = #found, 1, -1 do -- jobs are taken from the right end
    ids[#ids + 1] = found[n]
  end
  return ids, before
end

-- Out of the list, each by its place: others may have the same id.
local function take_out(list_key, places)
  if #places == 0 then
    return
  end
  for _, place in ipairs(places) do
    redis.call('LSET', list_key, -place, list_key) -- no job has such an id
  end
  local from_right = places[#places] * 2 < redis.call('LLEN', list_key)
  redis.call('LREM', list_key, from_right and -#places or #places, list_key)
end

-- Deletes up to `most` jobs of those `ids` that are meant, of which `is_meant` is asked with the id and
-- what was read of the job.  Answers the ids that went, the last one
-- that stayed, and how many were looked at.
local function clear_ids(keys, list_key, is_list, ids, before, most, is_meant)
  local gone, places, anchor, looked = {}, {}, nil, 0
  for n, job_id in ipairs(ids) do
    if #gone == most then
      break
    end
    looked = n
    local fields = read_for_clearing(keys.base .. job_id)
    if is_meant(job_id, fields) then
      delete_job(keys, job_id, fields)
      gone[#gone + 1], places[#places + 1] = job_id, before + n
    else
      anchor = job_id
    end
  end
  delete_doomed()
  if is_list then
    take_out(list_key, places)
  elseif #gone > 0 then
    redis.call('ZREM', list_key, unpack(gone))
  end
  return gone, anchor, looked
end

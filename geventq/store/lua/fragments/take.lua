--- include: number
--- include: wake

local MOST_DATA = 1048576 -- bytes of all jobs that one call takes, but for the last one

-- Taking up to `room` jobs (wire-format 8.10, 9.4): wait from the right, then prioritized.
-- An id without a readable hash is not taken: it leaves the lists and is named in the reply.

-- Up to `room` ids, and whether one of them may need a closer look: nearly all are ASCII without a
-- colon, and not the name of the hash that the queue has itself.  Where wait has too few, or markers of
-- version 4, the second list has the scores of those that were in prioritized.
local function pop_ids(keys, room)
  local ids, scores = redis.call('RPOP', keys.wait, room) or {}, {}
  room = tonumber(room)
  local names = table.concat(ids, ' ')
  local is_odd = string.find(names, '[:\128-\255]') or string.find(names, 'meta', 1, true)
  if #ids == room and not is_odd then
    return ids, scores, false
  end
  local popped, asked = ids, room
  ids = {}
  repeat
    for _, job_id in ipairs(popped) do
      if string.sub(job_id, 1, 2) ~= '0:' then -- a marker of version 4
        ids[#ids + 1] = job_id
      end
    end
    local there_may_be_more = #popped == asked
    asked = room - #ids
    popped = there_may_be_more and asked > 0 and redis.call('RPOP', keys.wait, asked)
  until not popped
  if #ids < room then
    popped = redis.call('ZPOPMIN', keys.prioritized, room - #ids)
    if #popped == 0 then
      redis.call('DEL', keys.pc)
    end
    for i = 1, #popped, 2 do
      ids[#ids + 1] = popped[i]
      scores[popped[i]] = popped[i + 1]
    end
  end
  return ids, scores, true
end

-- `lock` is {beginning, first number or '', duration in ms}: each job gets a lock token of its own.
-- Answers jobs (of each its id, lock token, and fields as they were before the take, as one text where
-- that can be told apart), how many they are, broken ids {id, why}, whether there was more than one
-- call takes, and the id of the last event that tells of them.
local function take_jobs(keys, room, now_ms, lock, worker_name)
  local ids, scores, is_odd = pop_ids(keys, room)
  local jobs, broken, taken = {}, {}, {}
  local filled, told = 0, nil
  local at = 1 -- the id from which on none was taken, also where this fails
  local number = nil -- of the last lock token, from the first one on, if they have numbers

  local function take(job_id)
    local job_key = keys.base .. job_id
    local fields = redis.pcall('HGETALL', job_key)
    if #fields == 0 or (is_odd and not string.find(job_id, '^%d+$')) then
      --- include: untakable
      local why = why_not(keys, job_id, fields, now_ms)
      if why then
        broken[#broken + 1] = { job_id, why }
        return
      end
    end
    number = number and number + 1
    local token = lock[1] .. (number and string.format('%d', number) or lock[2])
    redis.call('SET', job_key .. ':lock', token, 'PX', lock[3])
    told = redis.call('XADD', keys.events, '*', 'event', 'active', 'jobId', job_id, 'prev', 'waiting')
    local started = '1'
    for i = 1, #fields, 2 do
      local name = fields[i]
      if name == 'data' then
        filled = filled + #fields[i + 1]
      elseif name == 'ats' then
        started = string.format('%.0f', whole_in(fields[i + 1]) + 1)
      end
    end
    if worker_name == '' then
      redis.call('HSET', job_key, 'processedOn', now_ms, 'ats', started)
    else
      redis.call('HSET', job_key, 'processedOn', now_ms, 'ats', started, 'pb', worker_name)
    end
    taken[#taken + 1] = job_id
    local last = #jobs -- flat: Redis asks each table of a reply what it is
    jobs[last + 1], jobs[last + 2] = job_id, token
    -- One text costs the half of a table, also with the look whether it can be told apart again.
    local has_zero = string.find(table.concat(fields), '\0', 1, true)
    jobs[last + 3] = has_zero and fields or table.concat(fields, '\0')
    number = number or tonumber(lock[2])
  end

  local function take_each()
    while at <= #ids and filled < MOST_DATA do
      take(ids[at])
      at = at + 1
    end
  end

  local done, why = pcall(take_each)
  if #taken > 0 then
    redis.call('LPUSH', keys.active, unpack(taken))
    wake(keys)
  end
  for n = #ids, at, -1 do -- what was popped is in no list (cancellation.md 3.6)
    if scores[ids[n]] then
      redis.call('ZADD', keys.prioritized, scores[ids[n]], ids[n])
    else
      redis.call('RPUSH', keys.wait, ids[n])
    end
  end
  if not done and #taken + #broken == 0 then
    error(why)
  end -- else the next call meets the fault alone
  return jobs, #taken, broken, at <= #ids, told
end

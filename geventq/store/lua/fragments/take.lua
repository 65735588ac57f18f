--- include: promote

-- Taking up to `room` jobs (wire-format 8.10, 9.4): wait from the right, then prioritized.
-- An id without a readable hash is not taken: it leaves the lists and is named in the reply.

local function pop_ids(keys, room)
  local ids = {}
  while #ids < room do
    local popped = redis.call('RPOP', keys.wait, room - #ids)
    if not popped then
      break
    end
    for _, job_id in ipairs(popped) do
      if string.sub(job_id, 1, 2) ~= '0:' then -- a marker of version 4
        ids[#ids + 1] = job_id
      end
    end
  end
  if #ids < room then
    local popped = redis.call('ZPOPMIN', keys.prioritized, room - #ids)
    if #popped == 0 then
      redis.call('DEL', keys.pc)
    end
    for i = 1, #popped, 2 do
      ids[#ids + 1] = popped[i]
    end
  end
  return ids
end

-- `lock` is {base, first number or nil, duration in ms}: each job gets a lock token of its own.
-- Answers jobs {id, lock token, fields as they were before the take...} and broken ids {id, why}.
local function take_jobs(keys, room, now_ms, lock, worker_name)
  local jobs, broken, taken = {}, {}, {}
  for _, job_id in ipairs(pop_ids(keys, room)) do
    local job_key = keys.base .. job_id
    local fields = redis.pcall('HGETALL', job_key)
    if fields.err then
      broken[#broken + 1] = { job_id, fields.err }
    elseif #fields == 0 then
      broken[#broken + 1] = { job_id, 'the job has no hash' }
    else
      local token = lock[1]
      if lock[2] then
        token = token .. string.format('%d', lock[2] + #jobs)
      end
      local started = 0
      for i = 1, #fields, 2 do
        if fields[i] == 'ats' then
          started = tonumber(fields[i + 1]) or 0
        end
      end
      taken[#taken + 1] = job_id
      jobs[#jobs + 1] = { job_id, token, fields }
      redis.call('SET', job_key .. ':lock', token, 'PX', lock[3])
      redis.call('XADD', keys.events, '*', 'event', 'active', 'jobId', job_id, 'prev', 'waiting')
      if worker_name == '' then
        redis.call('HSET', job_key, 'processedOn', now_ms, 'ats', started + 1)
      else
        redis.call('HSET', job_key, 'processedOn', now_ms, 'ats', started + 1, 'pb', worker_name)
      end
    end
  end
  if #taken > 0 then
    redis.call('LPUSH', keys.active, unpack(taken))
    redis.call('ZADD', keys.marker, 0, '0')
  end
  return jobs, broken
end

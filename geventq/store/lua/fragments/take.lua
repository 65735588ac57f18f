local MOST_DATA = 1048576 -- bytes of all jobs that one call takes, but for the last one

-- Taking up to `room` jobs (wire-format 8.10, 9.4): wait from the right, then prioritized.
-- An id without a readable hash is not taken: it leaves the lists and is named in the reply.

-- `lock` is the beginning of the lock tokens, and `number`, if not '', what the first of them ends
-- with: each job gets one of its own.  Appends to `reply` of each job its id, its lock token, and its
-- fields as they were before the take, as one text where that can be told apart.  Answers how many
-- jobs they are, broken ids {id, why}, whether there was more than one call takes, and the id of the
-- last event that tells of them.
local function take_jobs(keys, room, now_ms, lock, number, duration_ms, worker_name, reply)
  local ids, scores = redis.call('RPOP', keys.wait, room) or {}, nil
  -- Nearly all are ASCII without a colon, and not the name of the hash that the queue has itself.
  local names = table.concat(ids, ' ')
  local is_odd = #ids ~= tonumber(room) or string.find(names, '[:\128-\255]')
    or string.find(names, 'meta', 1, true)
  if is_odd then
    --- include: pop
    ids, scores = pop_others(keys, tonumber(room), ids)
  end
  local broken, taken, told = {}, {}, nil

  local function take_each()
    local numbered, filled = nil, 0 -- the last number; bytes of data
    for _, job_id in ipairs(ids) do
      if filled >= MOST_DATA then
        return
      end
      local job_key = keys.base .. job_id
      local fields = redis.pcall('HGETALL', job_key)
      local why = nil
      if #fields == 0 or (is_odd and not string.find(job_id, '^%d+$')) then
        --- include: untakable
        why = why_not(keys, job_id, fields, now_ms)
      end
      if why then
        broken[#broken + 1] = { job_id, why }
      else
        numbered = numbered and numbered + 1
        local token = lock .. (numbered and string.format('%d', numbered) or number)
        redis.call('SET', job_key .. ':lock', token, 'PX', duration_ms)
        told = redis.call('XADD', keys.events, '*', 'event', 'active', 'jobId', job_id,
          'prev', 'waiting')
        local started = '1'
        for i = 1, #fields, 2 do
          local name = fields[i]
          if name == 'data' then
            filled = filled + #fields[i + 1]
          elseif name == 'ats' then
            --- include: number
            started = string.format('%.0f', whole_in(fields[i + 1]) + 1)
          end
        end
        if worker_name == '' then
          redis.call('HSET', job_key, 'processedOn', now_ms, 'ats', started)
        else
          redis.call('HSET', job_key, 'processedOn', now_ms, 'ats', started, 'pb', worker_name)
        end
        -- One text costs the half of a table, also with the look whether it can be told apart again.
        local has_zero = string.find(table.concat(fields), '\0', 1, true)
        local last = #reply -- flat: Redis asks each table of a reply what it is
        reply[last + 1], reply[last + 2] = job_id, token
        reply[last + 3] = has_zero and fields or table.concat(fields, '\0')
        taken[#taken + 1] = job_id
        numbered = numbered or tonumber(number)
      end
    end
  end

  local done, why = pcall(take_each)
  if #taken > 0 then
    redis.call('LPUSH', keys.active, unpack(taken))
    redis.call('ZADD', keys.marker, '0', '0') -- one idle worker looks: there may be more
  end
  local handled = #taken + #broken
  for n = #ids, handled + 1, -1 do -- what was popped is in no list (cancellation.md 3.6)
    if scores and scores[ids[n]] then
      redis.call('ZADD', keys.prioritized, scores[ids[n]], ids[n])
    else
      redis.call('RPUSH', keys.wait, ids[n])
    end
  end
  if not done and handled == 0 then
    error(why)
  end -- else the next call meets the fault alone
  return #taken, broken, handled < #ids, told
end

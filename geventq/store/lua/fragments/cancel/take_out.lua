-- The jobs that a call cancels out of wait, in one pass where they are many.

local function remove_from_wait()
  -- Whether each job is in the list, and out of it unless nothing is to be changed.
  local function take_out_one_by_one(list_key, wanted)
    for _, job in ipairs(wanted) do
      if is_dry then -- in no other place, so it is here, or in none
        job.found = lengths.wait > FILTERED or redis.call('LPOS', list_key, job.id) and true
      else
        job.found = redis.call('LREM', list_key, 1, job.id) > 0
      end
    end
  end

  local function filter(list_key, wanted)
    local by_id, stay = {}, {}
    for _, job in ipairs(wanted) do
      by_id[job.id] = job
    end
    for _, id in ipairs(redis.call('LRANGE', list_key, 0, -1)) do
      if by_id[id] then
        by_id[id].found = true
      else
        stay[#stay + 1] = id
      end
    end
    if is_dry then
      return
    end
    redis.call('DEL', list_key)
    for first = 1, #stay, 5000 do
      redis.call('RPUSH', list_key, unpack(stay, first, math.min(first + 4999, #stay)))
    end
  end

  local function take_out(list_key, wanted, length)
    if #wanted > 50 and length <= FILTERED then
      filter(list_key, wanted)
    else
      take_out_one_by_one(list_key, wanted)
    end
  end

  take_out(keys.wait, in_wait, lengths.wait)
  if lengths.paused > 0 then -- left there by a version 5 (wire-format 16)
    local rest = {}
    for _, job in ipairs(in_wait) do
      if not job.found then
        rest[#rest + 1] = job
      end
    end
    take_out(keys.paused, rest, lengths.paused)
  end
  for _, job in ipairs(in_wait) do
    if not job.found then -- a hash in no list: some program's half-done work
      job.status, job.state = 'not_found', 'unknown'
    end
  end
end

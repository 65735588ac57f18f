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

  -- From both ends inwards: whole pages of jobs are near one of them.
  local PAGE = 1000
  local function filter(list_key, wanted, length)
    local by_id, left = {}, #wanted
    for _, job in ipairs(wanted) do
      by_id[job.id] = job
    end
    local function staying(first, last)
      local stay = {}
      for _, id in ipairs(redis.call('LRANGE', list_key, first, last)) do
        local job = by_id[id]
        if not job then
          stay[#stay + 1] = id
        elseif not job.found then
          job.found, left = true, left - 1
        end
      end
      return stay
    end
    local fronts, backs, first, last = {}, {}, 0, length - 1 -- what was not looked at
    while left > 0 and first <= last do
      fronts[#fronts + 1] = staying(first, math.min(first + PAGE - 1, last))
      first = first + PAGE
      if left > 0 and first <= last then
        backs[#backs + 1] = staying(math.max(first, last - PAGE + 1), last)
        last = last - PAGE
      end
    end
    if is_dry then
      return
    end
    redis.call('LTRIM', list_key, first, last)
    for n = #backs, 1, -1 do
      if #backs[n] > 0 then
        redis.call('RPUSH', list_key, unpack(backs[n]))
      end
    end
    for n = #fronts, 1, -1 do
      local reversed = {}
      for i = #fronts[n], 1, -1 do
        reversed[#reversed + 1] = fronts[n][i]
      end
      if #reversed > 0 then
        redis.call('LPUSH', list_key, unpack(reversed))
      end
    end
  end

  local function take_out(list_key, wanted, length)
    if #wanted > 50 and length <= FILTERED then
      filter(list_key, wanted, length)
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

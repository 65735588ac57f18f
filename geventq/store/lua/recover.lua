-- Find the jobs that a take whose answer was lost has taken, and renew their locks
-- (cancellation.md 3.6).
--
-- KEYS   active
-- ARGV   1 key base
--        2 the lock token, or, if numbers follow, its beginning
--        3 lock duration in ms
--        4... pairs: first number, and how many, of the lock tokens that were sent
-- Reply  jobs {id, lock token, hash; empty if it is none}
-- Events none
--- include: job

local base, beginning, duration = ARGV[1], ARGV[2], ARGV[3]

local function was_sent(holder)
  if #ARGV == 3 then
    return holder == beginning
  end
  if string.sub(holder, 1, #beginning) ~= beginning then
    return false
  end
  local number = tonumber(string.sub(holder, #beginning + 1))
  for at = 4, #ARGV, 2 do
    local first = tonumber(ARGV[at])
    if number and number >= first and number < first + tonumber(ARGV[at + 1]) then
      return true
    end
  end
  return false
end

local found = {}
local active = redis.call('LRANGE', keys.active, 0, -1)
for first = 1, #active, 5000 do
  local last = math.min(first + 4999, #active)
  local lock_keys = {}
  for i = first, last do
    lock_keys[#lock_keys + 1] = base .. active[i] .. ':lock'
  end
  for n, holder in ipairs(redis.call('MGET', unpack(lock_keys))) do
    if holder and was_sent(holder) then
      local job_id = active[first + n - 1]
      local fields = is_job(base .. job_id) and redis.call('HGETALL', base .. job_id) or {}
      redis.call('PEXPIRE', base .. job_id .. ':lock', duration)
      found[#found + 1] = { job_id, holder, fields }
    end
  end
end
return found

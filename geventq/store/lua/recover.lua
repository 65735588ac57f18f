-- Find the jobs that a take whose answer was lost has taken, and renew their locks
-- (cancellation.md 3.6).
--
-- A long list is read in several calls.  Each begins in the middle of what the last one has read,
-- because jobs that end meanwhile move the others towards the left end.
--
-- KEYS   active
-- Also   <id> :lock
-- ARGV   1 key base
--        2 the lock token, or, if numbers follow, its beginning
--        3 lock duration in ms  4 where in active to begin, 0 at first
--        5... pairs: first number, and how many, of the lock tokens that were sent
-- Reply  {jobs (id, lock token, hash; empty if it is none), where to go on, or -1}
-- Events none
--- include: bound
--- include: job

local base, beginning, duration, start = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])

local function was_sent(holder)
  if #ARGV == 4 then
    return holder == beginning
  end
  if string.sub(holder, 1, #beginning) ~= beginning then
    return false
  end
  local number = tonumber(string.sub(holder, #beginning + 1))
  for at = 5, #ARGV, 2 do
    local first = tonumber(ARGV[at])
    if number and number >= first and number < first + tonumber(ARGV[at + 1]) then
      return true
    end
  end
  return false
end

local found = {}
local active = redis.call('LRANGE', keys.active, start, start + MOST - 1)
local lock_keys = {}
for n, job_id in ipairs(active) do
  lock_keys[n] = base .. job_id .. ':lock'
end
for n, holder in ipairs(#active > 0 and redis.call('MGET', unpack(lock_keys)) or {}) do
  if holder and was_sent(holder) then
    local job_id = active[n]
    local fields = is_job(base .. job_id) and redis.call('HGETALL', base .. job_id) or {}
    if redis.call('PTTL', lock_keys[n]) < tonumber(duration) then -- else it was extended
      redis.call('PEXPIRE', lock_keys[n], duration)
    end
    found[#found + 1], found[#found + 2], found[#found + 3] = job_id, holder, fields
  end
end
return { found, #active == MOST and start + MOST / 2 or -1 }

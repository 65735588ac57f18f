-- Find the jobs that a take whose answer was lost has taken (cancellation.md 3.6).
--
-- KEYS   1 active
-- ARGV   1 key base  2 beginning of the worker's lock tokens
--        3... pairs: first number, and how many, of the lock tokens that were sent
-- Reply  jobs {id, lock token, hash}
-- Events none
-- key count: 1

local found = {}
local active = redis.call('LRANGE', KEYS[1], 0, -1)
for first = 1, #active, 5000 do
  local last = math.min(first + 4999, #active)
  local lock_keys = {}
  for i = first, last do
    lock_keys[#lock_keys + 1] = ARGV[1] .. active[i] .. ':lock'
  end
  for n, holder in ipairs(redis.call('MGET', unpack(lock_keys))) do
    if holder and string.sub(holder, 1, #ARGV[2]) == ARGV[2] then
      local number = tonumber(string.sub(holder, #ARGV[2] + 1))
      for at = 3, #ARGV, 2 do
        local start = tonumber(ARGV[at])
        if number and number >= start and number < start + tonumber(ARGV[at + 1]) then
          local job_id = active[first + n - 1]
          found[#found + 1] = { job_id, holder, redis.call('HGETALL', ARGV[1] .. job_id) }
        end
      end
    end
  end
end
return found

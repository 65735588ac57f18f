-- Renew locks for their full duration (wire-format 9.10; cancellation.md 3.1), and tell what is asked
-- of their jobs.  A lock that was extended beyond that meanwhile stays as it is.
--
-- KEYS   stalled
-- Also   <id> :lock gq:
-- ARGV   1 key base  2 lock duration in ms  3... pairs of job id and lock token
-- Reply  {for each pair, in order: how many ms the lock lives from now on, 0 if it is gone or
--        another's; requests to cancel that are recorded with these jobs {number of the pair,
--        record}; of locks that were taken away for a kill {number of the pair, message}}
-- Events none

local duration = tonumber(ARGV[2])
local lock_keys, renewed, lives, asked, taken = {}, {}, {}, {}, {}
for at = 3, #ARGV, 2 do
  lock_keys[#lock_keys + 1] = ARGV[1] .. ARGV[at] .. ':lock'
end
local holders = redis.call('MGET', unpack(lock_keys))
for n, lock_key in ipairs(lock_keys) do
  local at = 1 + 2 * n
  lives[n] = 0
  if holders[n] == ARGV[at + 1] then
    lives[n] = redis.call('PTTL', lock_key)
    if lives[n] < duration then
      redis.call('PEXPIRE', lock_key, ARGV[2])
      lives[n] = duration
    end
    renewed[#renewed + 1] = ARGV[at]
    local record = redis.pcall('HGET', ARGV[1] .. ARGV[at], 'gqc')
    if type(record) == 'string' then
      asked[#asked + 1] = { n, record }
    end
  else
    local message = redis.pcall('HGET', ARGV[1] .. 'gq:taken:' .. ARGV[at + 1], 'message')
    if type(message) == 'string' then
      taken[#taken + 1] = { n, message }
    end
  end
end
if #renewed > 0 then -- a foreign key in the place of `stalled` takes nobody's lock
  redis.pcall('SREM', keys.stalled, unpack(renewed))
end
return { lives, asked, taken }

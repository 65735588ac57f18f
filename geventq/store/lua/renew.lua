-- Renew locks for their full duration (wire-format 9.10; cancellation.md 3.1).
--
-- KEYS   stalled
-- ARGV   1 key base  2 lock duration in ms  3... pairs of job id and lock token
-- Reply  a list: 1 renewed, 0 gone or another's, in the order of the pairs
-- Events none

local lock_keys, renewed, answers = {}, {}, {}
for at = 3, #ARGV, 2 do
  lock_keys[#lock_keys + 1] = ARGV[1] .. ARGV[at] .. ':lock'
end
local holders = redis.call('MGET', unpack(lock_keys))
for n, lock_key in ipairs(lock_keys) do
  local at = 1 + 2 * n
  if holders[n] == ARGV[at + 1] then
    redis.call('SET', lock_key, ARGV[at + 1], 'PX', ARGV[2])
    renewed[#renewed + 1] = ARGV[at]
    answers[n] = 1
  else
    answers[n] = 0
  end
end
if #renewed > 0 then
  redis.call('SREM', keys.stalled, unpack(renewed))
end
return answers

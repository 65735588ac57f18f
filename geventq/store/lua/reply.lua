-- A worker answers a call of a group (cancellation.md 5.7).
--
-- KEYS   replies
-- ARGV   1 the reply  2 ms that it is kept
-- Reply  0
-- Events none
--- include: types

local wrong = wrong_type(keys)
if wrong then
  return wrong
end
redis.call('PEXPIRE', keys.replies, ARGV[2]) -- first: a full Redis refuses RPUSH as the first write
redis.call('RPUSH', keys.replies, ARGV[1])
redis.call('PEXPIRE', keys.replies, ARGV[2])
return 0

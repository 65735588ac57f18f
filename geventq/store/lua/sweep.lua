-- Look at jobs that a worker holds: what is asked of them, and whether it still does
-- (cancellation.md 5.2).  One call where nobody has asked anything since the last look.
--
-- KEYS   meta
-- Also   <id> :lock
-- ARGV   1 key base  2 the count of requests to cancel at the last look; -1: look all the same
--        3... pairs of job id and lock token
-- Reply  {the count, for each pair that there is something to tell of {its number, the record or
--        '', 1 if the lock is gone or another's, else 0}}
-- Events none
--- include: meta

local _, _, requests = read_meta(keys)
local told = {}
local lock_keys = {}
for at = 3, #ARGV, 2 do
  lock_keys[#lock_keys + 1] = ARGV[1] .. ARGV[at] .. ':lock'
end
if #lock_keys > 0 and requests ~= tonumber(ARGV[2]) then
  for n, holder in ipairs(redis.call('MGET', unpack(lock_keys))) do
    local at = 1 + 2 * n
    local record = redis.pcall('HGET', ARGV[1] .. ARGV[at], 'gqc')
    local is_lost = holder ~= ARGV[at + 1]
    if is_lost or type(record) == 'string' then
      told[#told + 1] = { n, type(record) == 'string' and record or '', is_lost and 1 or 0 }
    end
  end
end
return { string.format('%.0f', requests), told }

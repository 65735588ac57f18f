-- Look at jobs that a worker holds: what is asked of them, and whether it still does
-- (cancellation.md 5.2).  One call where nobody has asked anything since the last look.
--
-- KEYS   meta
-- Also   <id> :lock gq:
-- ARGV   1 key base  2 the count of requests to cancel at the last look; -1: look all the same
--        3... pairs of job id and lock token
-- Reply  {the count, for each pair that there is something to tell of {its number, the record, 0}, or,
--        if the lock is gone or another's, {its number, the message of who took it away for a kill
--        or '', 1}}
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
    if holder ~= ARGV[at + 1] then
      local message = redis.pcall('HGET', ARGV[1] .. 'gq:taken:' .. ARGV[at + 1], 'message')
      told[#told + 1] = { n, type(message) == 'string' and message or '', 1 }
    else
      local record = redis.pcall('HGET', ARGV[1] .. ARGV[at], 'gqc')
      if type(record) == 'string' then
        told[#told + 1] = { n, record, 0 }
      end
    end
  end
end
return { string.format('%.0f', requests), told }

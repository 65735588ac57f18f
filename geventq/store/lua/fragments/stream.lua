-- Looking at the event stream before the first write: what was written before an event is refused
-- stays (cancellation.md 3.7).

local LAST_IDS = '18446744073709551615-18446744069414584319' -- 2^32 ids are behind it

-- The error reply for a stream that takes no more events, because somebody has added one with nearly
-- the last id that there can be, or nil.  A key of another type is an error of the command's own.
local function used_up(events)
  if redis.call('XREAD', 'STREAMS', events, LAST_IDS) then
    return redis.error_reply('ERR the stream ' .. events .. ' has no ids left for events: delete it')
  end
end

-- What a queue keeps under such names is no job, whatever list they got into (wire-format 1);
-- `repeat:id:ms` is one.
local RESERVED = ' wait active prioritized delayed waiting-children completed failed paused stalled'
  .. ' stalled-check meta id pc marker events limiter metrics de dn delay priority '
local PARTS = ' lock logs dependencies processed failed unsuccessful '

local function is_queue_key(job_id)
  local first, colon, rest = string.match(job_id, '^([^:]*)(:?)(.*)$')
  if first == 'repeat' then
    return not string.find(rest, ':', 1, true)
  end
  local last = ' ' .. string.match(rest, '[^:]*$') .. ' '
  return string.find(RESERVED, ' ' .. first .. ' ', 1, true)
    or colon == ':' and (first == 'gq' or string.find(PARTS, last, 1, true))
end

--- include: digits

-- How many jobs may run in all (wire-format 8): below 0 means none, as with BullMQ; nil is no limit.
local function limit_in(text)
  local limit = tonumber(text)
  return limit and limit < HUGE and math.max(0, math.ceil(limit)) or nil
end

-- Numbers that any program may have stored.  For Lua "nan", "inf" and "1e400" are numbers, too, but no
-- command takes them: a script would stop half-way.  What is no text is no number.

local HUGE = 9007199254740992 -- 2^53, from which on not every whole number has a double

-- A number from 0 on, or nil.
local function number_in(text)
  local number = tonumber(text)
  return number and number >= 0 and number < HUGE and number or nil
end

-- The same as a whole number; 0 for what is none.
local function whole_in(text)
  return math.floor(number_in(text) or 0)
end

-- The text of a whole number as it stands there, which commands and callers read, too, or nil.
local function digits_in(text)
  return text and #text <= 16 and string.find(text, '^%d+$') and tonumber(text) < HUGE and text or nil
end

-- How many jobs may run in all (wire-format 8): below 0 means none, as with BullMQ; nil is no limit.
local function limit_in(text)
  local limit = tonumber(text)
  return limit and limit < HUGE and math.max(0, math.ceil(limit)) or nil
end

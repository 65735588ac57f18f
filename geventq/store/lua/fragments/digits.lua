-- Numbers that any program may have stored.  For Lua "nan", "inf" and "1e400" are numbers, too, but no
-- command takes them: a script would stop half-way.  What is no text is no number.

local HUGE = 9007199254740992 -- 2^53, from which on not every whole number has a double

-- The text of a whole number as it stands there, which commands and callers read, too, or nil.
local function digits_in(text)
  return text and #text <= 16 and string.find(text, '^%d+$') and tonumber(text) < HUGE and text or nil
end

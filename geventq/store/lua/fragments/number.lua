--- include: digits

-- A number from 0 on, or nil.
local function number_in(text)
  local number = tonumber(text)
  return number and number >= 0 and number < HUGE and number or nil
end

-- The same as a whole number; 0 for what is none.
local function whole_in(text)
  return math.floor(number_in(text) or 0)
end

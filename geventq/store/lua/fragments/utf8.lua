-- Whether a text is UTF-8, as Python understands it: no surrogates, no overlong forms.
local function is_utf8(text)
  if not string.find(text, '[\128-\255]') then
    return true
  end
  local at, length = 1, #text
  while at <= length do
    local lead, second = string.byte(text, at, at + 1)
    local size, low, high = 1, 128, 191
    if lead >= 240 and lead <= 244 then
      size = 4
      low, high = lead == 240 and 144 or 128, lead == 244 and 143 or 191
    elseif lead >= 224 and lead <= 239 then
      size = 3
      low, high = lead == 224 and 160 or 128, lead == 237 and 159 or 191
    elseif lead >= 194 and lead <= 223 then
      size = 2
    elseif lead >= 128 then
      return false
    end
    if size > 1 and (not second or second < low or second > high
      or not string.find(string.sub(text, at + 2, at + size - 1), '^[\128-\191]*$')
      or at + size - 1 > length) then
      return false
    end
    at = at + size
  end
  return true
end

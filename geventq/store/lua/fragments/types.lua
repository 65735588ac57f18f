-- Looking at the types of keys before the first write.

-- The error reply for the first of `expected` (pairs of key and type) that holds something
-- else, or nil.
local function wrong_type(expected)
  for _, pair in ipairs(expected) do
    local found = redis.call('TYPE', pair[1]).ok
    if found ~= pair[2] and found ~= 'none' then
      return redis.error_reply('WRONGTYPE the key ' .. pair[1] .. ' holds a ' .. found
        .. ', not a ' .. pair[2])
    end
  end
end

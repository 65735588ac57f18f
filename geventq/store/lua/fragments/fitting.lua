-- Replies that are bounded in bytes as well: results and reasons may be large.
local MOST_BYTES = 1048576 -- after which no more is put into a reply

local function size_of(texts)
  local size = 0
  for _, text in ipairs(texts) do
    size = size + #text
  end
  return size
end

-- How many entries to read next, after `read` of them with so many bytes: as many again, and no
-- more than fit if they are as large.
local function fitting(read, bytes, most)
  if read == 0 then
    return 1
  end
  local room = math.floor((MOST_BYTES - bytes) / (bytes / read + 1))
  return math.max(1, math.min(read, most - read, room))
end

-- What is recorded with a job (cancellation.md 4.3), which any program may have written, at any length.
local LARGEST_RECORD = 262144 -- bytes: more than eight signed requests with reasons as long as can be

-- The table that JSON text stands for, empty for what stands for none; `text` may be false.
local function record_in(text)
  local read, value = pcall(cjson.decode, text and #text <= LARGEST_RECORD and text or '')
  return read and type(value) == 'table' and value or {}
end

-- The last members of a list.
local function last_of(list, many)
  local length = type(list) == 'table' and #list or 0
  return length > 0 and { unpack(list, math.max(1, length - many + 1), length) } or {}
end

-- Those of them that are texts: NaN and what is nested too deep could be read, and not be written.
local function last_texts(list, many)
  local texts = {}
  for _, text in ipairs(last_of(list, many)) do
    texts[#texts + 1] = type(text) == 'string' and text or nil
  end
  return texts
end

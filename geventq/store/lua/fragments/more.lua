-- The rare rest of an outcome, or nil for what cannot be carried out.  It holds text of others, as a
-- trace that another program has cut through a character: of no outcome's the others may suffer.
local function read_more(kind, text)
  if text == '' then
    return nil
  end
  local read, more = pcall(cjson.decode, text)
  if not read or type(more) ~= 'table' then
    return nil
  end
  if kind == 'd' and type(more.delay) ~= 'number' then
    return nil
  end
  if (kind == 'f' or kind == 'r' or (kind == 'd' and not more.move)) and type(more.stack) ~= 'string' then
    return nil
  end
  return more
end

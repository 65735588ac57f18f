-- Read jobs: as many of them, in order, as fit into a reply, and one at least.
--
-- KEYS   meta
-- Also   <id>
-- ARGV   1... job ids
-- Reply  the hashes of the first of them: of each its fields and values, none where there is no job,
--        an error where something else is at its key
-- Events none
--- include: fitting

local base = string.sub(keys.meta, 1, -5) -- without its last four letters
local bytes, hashes = 0, {}
for n = 1, #ARGV do
  local fields = redis.pcall('HGETALL', base .. ARGV[n])
  hashes[n] = fields
  bytes = bytes + size_of(fields)
  if bytes >= MOST_BYTES then
    break
  end
end
return hashes

-- Rows of a job's log, oldest first: as many as fit into a reply.
--
-- KEYS   logs
-- ARGV   1 where to begin  2 how many at most
-- Reply  the rows; fewer than asked for also where they are large
-- Events none
--- include: fitting

local rows, bytes, start, most = {}, 0, tonumber(ARGV[1]), tonumber(ARGV[2])
while #rows < most and bytes < MOST_BYTES do
  local count, first = fitting(#rows, bytes, most), start + #rows
  local some = redis.call('LRANGE', keys.logs, first, first + count - 1)
  for _, row in ipairs(some) do
    rows[#rows + 1] = row
  end
  bytes = bytes + size_of(some)
  if #some < count then
    break
  end
end
return rows

-- Up to `room` ids where wait has too few, or markers of version 4: then prioritized is next.  `popped`
-- were popped from wait already.  The second list has the scores of those that were in prioritized.
local function pop_others(keys, room, popped)
  local ids, scores, asked = {}, {}, room
  repeat
    for _, job_id in ipairs(popped) do
      if string.sub(job_id, 1, 2) ~= '0:' then -- a marker of version 4
        ids[#ids + 1] = job_id
      end
    end
    local there_may_be_more = #popped == asked
    asked = room - #ids
    popped = there_may_be_more and asked > 0 and redis.call('RPOP', keys.wait, asked)
  until not popped
  if #ids < room then
    popped = redis.call('ZPOPMIN', keys.prioritized, room - #ids)
    if #popped == 0 then
      redis.call('DEL', keys.pc)
    end
    for i = 1, #popped, 2 do
      ids[#ids + 1] = popped[i]
      scores[popped[i]] = popped[i + 1]
    end
  end
  return ids, scores
end

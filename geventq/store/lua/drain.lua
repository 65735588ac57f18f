-- Delete all jobs that wait to run, also delayed ones on request (wire-format 9.16), but no run that a
-- living scheduler has planned.
--
-- KEYS   wait paused prioritized delayed schedulers active meta marker
-- Also   <id> :logs :dependencies :processed :failed :unsuccessful de: dn: meta:
-- ARGV   1 key base  2 '1' = delayed ones, too
--        3 which of the keys to go on with, 'wait' at first  4 the anchor in it, '' at first
-- Reply  {which of the keys to go on with, or 'done', the anchor in it}
-- Events none
--- include: clear
--- include: scheduler

keys.base = ARGV[1]
local wrong = wrong_type(keys)
if wrong then
  return wrong
end
redis.call('DEL', keys.base .. 'meta:none') -- never there: a full Redis lets that pass, and the rest

local function is_meant(job_id, fields)
  return fields.err or not is_pending_run(job_id, fields[1])
end

local LISTS = { wait = keys.wait, paused = keys.paused }
local SETS = { prioritized = keys.prioritized, delayed = keys.delayed }
local NEXT = { wait = 'paused', paused = 'prioritized', prioritized = 'done', delayed = 'done' }
if ARGV[2] == '1' then
  NEXT.prioritized = 'delayed'
end
local place, anchor, room = ARGV[3], ARGV[4], MOST_CLEARED
while place ~= 'done' and room > 0 do
  local key, is_list = LISTS[place] or SETS[place], LISTS[place] ~= nil
  local ids, before = ids_behind(key, is_list, anchor, room)
  local _, stayed = clear_ids(keys, key, is_list, ids, before, MOST_CLEARED, is_meant)
  anchor = stayed or anchor
  if #ids < room then
    place, anchor = NEXT[place], ''
  end
  room = room - #ids
end
return { place, anchor }

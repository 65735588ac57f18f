-- Delete jobs of one state that are older than a moment, the oldest first (wire-format 9.15), but no
-- run that a living scheduler has planned, and none that is locked.
--
-- KEYS   wait paused active prioritized delayed completed failed schedulers events meta marker
--        stalled
-- Also   <id> :lock :logs :dependencies :processed :failed :unsuccessful de: dn: meta:
-- ARGV   1 key base  2 which of the keys  3 the moment in ms  4 how many jobs at most
--        5 the anchor that the last call answered, '' at first  6 '1' = this is the first call
-- Reply  {ids that went, 1 if there is more: call again, the anchor}
-- Events cleaned, for the first call and for each that deletes
--- include: clear
--- include: scheduler

keys.base = ARGV[1]
local LISTS = { wait = keys.wait, paused = keys.paused, active = keys.active }
local ENDED = { completed = keys.completed, failed = keys.failed }
local SETS = { prioritized = keys.prioritized, delayed = keys.delayed }
local place, oldest = ARGV[2], tonumber(ARGV[3])
local wrong = wrong_type(keys)
if wrong then
  return wrong
end

-- When a job that has not ended was last touched (wire-format 9.15), by its end (5), its last run (6),
-- its beginning (7); what says nothing, and what is no job, is old.
local MOMENTS = { prioritized = { 7 }, delayed = { 6, 7 } }
local ALL = { 5, 6, 7 }

local function is_old(fields)
  for _, n in ipairs(MOMENTS[place] or ALL) do
    local told = number_in(fields[n])
    if told then
      return told <= oldest
    end
  end
  return true
end

local function is_meant(job_id, fields)
  if place == 'active' and redis.call('EXISTS', keys.base .. job_id .. ':lock') == 1 then
    return false
  end
  return fields.err or is_old(fields) and not is_pending_run(job_id, fields[1])
end

local is_list, has_ended = LISTS[place] ~= nil, ENDED[place] ~= nil
local key = LISTS[place] or ENDED[place] or SETS[place]
local most = math.min(MOST_CLEARED, tonumber(ARGV[4]))
local ids, before, page = {}, 0, MOST_CLEARED
if has_ended then -- their scores are the moments of their ends
  page = most
  ids = redis.call('ZRANGEBYSCORE', key, '-inf', ARGV[3], 'LIMIT', 0, page)
  is_meant = function()
    return true
  end
else
  ids, before = ids_behind(key, is_list, ARGV[5], page)
end
redis.call('DEL', keys.base .. 'meta:none') -- never there: a full Redis lets that pass, and the rest
local gone, anchor, looked = clear_ids(keys, key, is_list, ids, before, most, is_meant)
if place == 'active' and #gone > 0 then
  redis.call('SREM', keys.stalled, unpack(gone))
end
if #gone > 0 or ARGV[6] == '1' then
  redis.call('XADD', keys.events, '*', 'event', 'cleaned', 'count', #gone)
end
local told = {}
for n, job_id in ipairs(gone) do -- those of a list as they stood there, as BullMQ tells them
  told[is_list and #gone + 1 - n or n] = job_id
end
local has_more = looked < #ids or #ids == page
return { told, has_more and 1 or 0, anchor or ARGV[5] }

-- A running job is asked to stop: the request is recorded, and its worker is told.
--- include: cancel/request
--- include: cancel/merge

local function ask(job)
  local before, record, decides = job.before, nil, true
  if before and before.v == 1 and (before.atm == job.made or not before.retry) then -- of this run
    record, decides = merged(job)
  end
  if not record then
    if job.asked then
      --- include: remember
      remember(job.key, job.asked)
    end
    local signed = job.signed ~= '' and ',"signed":' .. cjson.encode({ job.signed })
    record, decides = record_for(job, signed), true
  end
  if decides and not is_for_run then
    redis.call('HSET', job.key, 'gqc', record, 'defa', text)
  else
    redis.call('HSET', job.key, 'gqc', record)
  end
  count_request()
  tell('event', 'cancel-requested', 'jobId', job.id, 'reason', reason, 'kind', 'remote',
    'nonce', nonce)
  messages[#messages + 1] = { job.lock or '', message_for(job) }
end

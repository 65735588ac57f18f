-- A closer look at outcomes that may not be carried out as they are: whose lock is not their own, or
-- where a hash is gone, a job has children, or somebody has asked meanwhile.  Only reads.
local function make_closer_look(keys, all_exist, children, has_news)
  --- include: number
  --- include: record
  -- An outcome is sent again because its answer was lost: was it carried out the first time?  The
  -- hash tells (cancellation.md 3.6): an end raised atm, a move took the job out of active.  Once the
  -- lock can have lapsed, another may have ended the job: then only an end at our own moment is
  -- certain.
  local function was_ours(kind, job_id, ended_ms, more)
    local job_key = keys.base .. job_id
    local job = redis.pcall('HMGET', job_key, 'atm', 'stc', 'finishedOn')
    if job.err then
      return false
    end
    local is_end = kind == 'c' or kind == 'f'
    if more.lapsed then
      return is_end and job[3] == ended_ms
    end
    local made, stalls = whole_in(job[1]), whole_in(job[2])
    if is_end then
      if redis.call('EXISTS', job_key) == 0 then
        return more.keep ~= nil
      end
      return made > more.atm0 and job[3] == ended_ms
    end
    if kind == 'r' or (kind == 'd' and not more.move) then
      return made > more.atm0
    end
    if made ~= more.atm0 or stalls ~= more.stc0 then
      return false
    end
    return not redis.call('LPOS', keys.active, job_id) or redis.call('EXISTS', job_key .. ':lock') == 1
  end

  -- The code of an outcome whose lock is not its own (9.5, step 2).
  local function judge_unlocked(holder, kind, job_id, ended_ms, more)
    if more.atm0 and was_ours(kind, job_id, ended_ms, more) then
      return 1
    elseif not more.lapsed and not all_exist and redis.call('EXISTS', keys.base .. job_id) == 0 then
      return -1
    end
    return holder and -6 or -2
  end

  -- Whether a job may not complete for its children's sake (9.5, step 1).  A key that is none of
  -- theirs tells of no children.
  local function judge_children(job_key)
    local open = redis.pcall('SCARD', job_key .. ':dependencies')
    if type(open) == 'number' and open > 0 then
      return -4
    end
    local failed = redis.pcall('ZCARD', job_key .. ':unsuccessful')
    return type(failed) == 'number' and failed > 0 and -9 or 0
  end

  -- The recorded request that an outcome was decided without, or nil (cancellation.md 2.5, 4.6).
  local function unheard(job_key, heard)
    local record = redis.pcall('HGET', job_key, 'gqc')
    if type(record) ~= 'string' then
      return nil
    elseif type(heard) ~= 'table' then
      return record
    end
    local known = {}
    for _, nonce in ipairs(heard) do
      known[nonce] = true
    end
    local nonces = not known['*'] and record_in(record).nonces
    for _, nonce in ipairs(type(nonces) == 'table' and nonces or {}) do
      if not known[nonce] then
        return record
      end
    end
  end

  -- The code of one outcome, whose lock is held by `holder`.
  return function(holder, lock_token, kind, job_id, ended_ms, more)
    local job_key, code = keys.base .. job_id, 0
    if holder ~= lock_token then
      code = judge_unlocked(holder, kind, job_id, ended_ms, more)
    elseif not all_exist and redis.call('EXISTS', job_key) == 0 then
      code = -1
    elseif children and kind == 'c' then
      code = judge_children(job_key)
    end
    local record = code == 0 and has_news and unheard(job_key, more.heard)
    return record and { record } or code
  end
end

-- Two requests to one run become one (cancellation.md 2.2).  Needs `cancel/request`.

-- What was asked before and what is asked now, as one request (cancellation.md 2.2); whether this one
-- decides the outcome.  A reason is a text in here, so that none is encoded anew.
local function merged(job)
  --- include: record

  local RANK = { shutdown = 0, timeout = 1, parent = 2, remote = 2, user = 2 }

  local function is_stronger(one, other)
    local mine, theirs = RANK[one.kind] or 0, RANK[other.kind] or 0
    if mine ~= theirs then
      return mine > theirs
    end
    return not one.retry and other.retry
  end

  local function shorter(one, other)
    if type(one) ~= 'number' then
      return other
    end
    return type(other) == 'number' and math.min(one, other) or one
  end

  local MOST_SIGNED, MOST_NONCES = 8, 8
  local STRENGTH = { [true] = 3, [false] = 1 } -- of `hard`; null, the worker's mode, is between them

  -- Whether a signed request asks for all of the kill that another one asks for.
  local function covers(one, other)
    local mine, theirs = STRENGTH[one.hard] or 2, STRENGTH[other.hard] or 2
    local grace, other_grace = tonumber(one.killAfter), tonumber(other.killAfter)
    return one.key == other.key and mine >= theirs and (theirs == 1
      or grace == other_grace or (grace and other_grace and grace <= other_grace) == true)
  end

  -- The one of too many signed requests that is not kept: the oldest with a secret that the workers
  -- do not believe, else the oldest that another one covers.  So the strongest stays.
  local function spare(signed)
    local claims = {}
    for n, told in ipairs(signed) do
      claims[n] = record_in(told)
      if not is_believed(claims[n].key) then
        return n
      end
    end
    for n, claim in ipairs(claims) do
      for m, other in ipairs(claims) do
        if m ~= n and covers(other, claim) then
          return n
        end
      end
    end
    return 1
  end

  -- A merged record proves nothing: each signed request stays whole beside it (cancellation.md 8).
  local function all_signed(before)
    local signed = last_texts(before, MOST_SIGNED)
    signed[#signed + 1] = job.signed ~= '' and job.signed or nil
    while #signed > MOST_SIGNED do
      table.remove(signed, spare(signed))
    end
    return #signed > 0 and signed or nil
  end

  local before, now = job.before, cjson.decode(record_for(job))
  local nonces = last_texts(before.nonces, MOST_NONCES - 1)
  nonces[#nonces + 1] = nonce
  local decides = is_stronger(now, before)
  local base, other = decides and now or before, decides and before or now
  if base.hard ~= true and other.hard ~= false then
    base.hard = other.hard
  end
  if other.default_grace and base.default_grace ~= true then -- true, 'mode' or false
    base.default_grace = other.default_grace
  end
  base.kill_after = shorter(base.kill_after, other.kill_after)
  base.retry = base.retry and other.retry
  base.waits = base.waits or other.waits
  base.nonce, base.nonces = nonce, nonces
  base.signed = all_signed(before.signed)
  local written, record = pcall(cjson.encode, base)
  if written then -- what somebody else wrote there, as NaN, is no JSON: then this request stands alone
    return record, decides
  end
end

-- How many jobs are in each state, at one moment (wire-format 13).
--
-- KEYS  active, wait, completed, delayed, failed, prioritized, waiting-children
-- Reply seven numbers, in the order of KEYS
-- Events none
-- key count: 7

return {
  redis.call('LLEN', KEYS[1]), redis.call('LLEN', KEYS[2]), redis.call('ZCARD', KEYS[3]),
  redis.call('ZCARD', KEYS[4]), redis.call('ZCARD', KEYS[5]), redis.call('ZCARD', KEYS[6]),
  redis.call('ZCARD', KEYS[7]),
}

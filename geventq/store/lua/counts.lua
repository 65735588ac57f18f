-- How many jobs are in each state, at one moment (wire-format 13).
--
-- KEYS   active wait completed delayed failed prioritized waiting_children
-- ARGV   none
-- Reply  seven numbers, in the order of KEYS
-- Events none

return {
  redis.call('LLEN', keys.active), redis.call('LLEN', keys.wait), redis.call('ZCARD', keys.completed),
  redis.call('ZCARD', keys.delayed), redis.call('ZCARD', keys.failed), redis.call('ZCARD', keys.prioritized),
  redis.call('ZCARD', keys.waiting_children),
}

-- Forgets a lease and counts its events as done in the present ten seconds.
-- KEYS: leases, attempts, the lease's list, done (hash: ten seconds -> events)
-- ARGV: the lease's id, seconds that the counts are kept
local events = redis.call('LLEN', KEYS[3])
redis.call('DEL', KEYS[3])
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
if events > 0 then
  local slot = math.floor(redis.call('TIME')[1] / 10)
  redis.call('HINCRBY', KEYS[4], slot, events)
  redis.call('EXPIRE', KEYS[4], ARGV[2])
  if redis.call('HLEN', KEYS[4]) > 20 then
    for _, old in ipairs(redis.call('HKEYS', KEYS[4])) do
      -- A later one than now is of the time before the clock was turned back.
      if tonumber(old) < slot - 10 or tonumber(old) > slot then
        redis.call('HDEL', KEYS[4], old)
      end
    end
  end
end
return events

-- Appends events and counts them as accepted, once for each lease of the queue they come from; and
-- beside it how many came from which epoch of that queue.
-- KEYS: list, ledger (hash: epoch, accepted, origin -> events), drained (sorted set: lease -> last
--       use in s), origins (sorted set: epoch of another queue -> last use in s)
-- ARGV: the lease's id, a new epoch's id, seconds to keep the list and the leases, most leases,
--       the epoch that the events come from, most origins, event, …
-- Returns {epoch, accepted, length of the list, accepted of that origin}.
local now = tonumber(redis.call('TIME')[1])
local first = 7
-- What can fail comes before what cannot be taken back: a script is not rolled back.
local is_known = redis.call('ZSCORE', KEYS[3], ARGV[1])
local length = redis.call('LLEN', KEYS[1])
redis.call('ZADD', KEYS[4], now, ARGV[5])
redis.call('HSETNX', KEYS[2], 'epoch', ARGV[2])
redis.call('HINCRBY', KEYS[2], ARGV[5], 0)
local events = is_known and 0 or #ARGV - first + 1
local accepted = redis.call('HINCRBY', KEYS[2], 'accepted', events)
local moved = redis.call('HINCRBY', KEYS[2], ARGV[5], events)
if not is_known then
  -- `unpack` fails near 8,000.
  for from = first, #ARGV, 1000 do
    length = redis.call('RPUSH', KEYS[1], unpack(ARGV, from, math.min(from + 999, #ARGV)))
  end
  redis.call('EXPIRE', KEYS[1], ARGV[3])
end
redis.call('ZADD', KEYS[3], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now - ARGV[3])
redis.call('ZREMRANGEBYRANK', KEYS[3], 0, -1 - ARGV[4])
redis.call('EXPIRE', KEYS[3], ARGV[3])
for _, origin in ipairs(redis.call('ZRANGE', KEYS[4], 0, -1 - ARGV[6])) do
  redis.call('HDEL', KEYS[2], origin)
  redis.call('ZREM', KEYS[4], origin)
end
return {redis.call('HGET', KEYS[2], 'epoch'), accepted, length, moved}

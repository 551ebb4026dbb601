-- Appends events and counts them as accepted, once for each lease of the queue they come from.
-- KEYS: list, ledger (hash: epoch, accepted), drained (sorted set: lease -> last use in s)
-- ARGV: the lease's id, a new epoch's id, seconds to keep the list and the leases, most leases,
--       event, …
-- Returns {epoch, accepted, length of the list}.
local now = tonumber(redis.call('TIME')[1])
local first = 5
-- What can fail comes before what cannot be taken back: a script is not rolled back.
local is_known = redis.call('ZSCORE', KEYS[3], ARGV[1])
local length = redis.call('LLEN', KEYS[1])
redis.call('HSETNX', KEYS[2], 'epoch', ARGV[2])
local accepted = redis.call('HINCRBY', KEYS[2], 'accepted', is_known and 0 or #ARGV - first + 1)
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
return {redis.call('HGET', KEYS[2], 'epoch'), accepted, length}

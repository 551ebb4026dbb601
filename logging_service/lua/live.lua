-- Notes that a worker lives, and counts those that do.
-- KEYS: workers (sorted set: id -> last seen in s); ARGV: the worker's id, seconds that it may be
-- silent
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
-- Seen later than now: the clock was turned back, and who lives is seen again soon.
redis.call('ZREMRANGEBYSCORE', KEYS[1], '(' .. now, '+inf')
redis.call('EXPIRE', KEYS[1], 2 * ARGV[2])
return redis.call('ZCARD', KEYS[1])

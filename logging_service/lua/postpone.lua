-- Moves the deadline of a lease that still is one.
-- KEYS: leases; ARGV: the lease's id, ms from now
-- A script that has begun to write may go on when memory is short.
redis.call('ZREM', KEYS[1], '')
local clock = redis.call('TIME')
local deadline = clock[1] * 1000 + math.floor(clock[2] / 1000) + ARGV[2]
return redis.call('ZADD', KEYS[1], 'XX', 'CH', deadline, ARGV[1])

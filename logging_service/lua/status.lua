-- Counts what waits and what is leased.
-- KEYS: list, leases, done; ARGV: prefix of the leases' lists
-- Returns {waiting, in flight, done in the last full 30 s, now in s, oldest event or false}
local now = tonumber(redis.call('TIME')[1])
local slot = math.floor(now / 10)
local in_flight, done, oldest = 0, 0, false
for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
  in_flight = in_flight + redis.call('LLEN', ARGV[1] .. id)
  oldest = oldest or redis.call('LINDEX', ARGV[1] .. id, 0)
end
for past = slot - 3, slot - 1 do
  done = done + (redis.call('HGET', KEYS[3], past) or 0)
end
oldest = oldest or redis.call('LINDEX', KEYS[1], 0)
return {redis.call('LLEN', KEYS[1]), in_flight, done, now, oldest}

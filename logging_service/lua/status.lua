-- Counts what waits and what is leased.
-- KEYS: list, leases, done, drained; ARGV: prefix of the leases' lists, bytes of a head
-- Returns {waiting, in flight, done in the last full 30 s, now in s, when events of another queue
-- were put last in s, {head of the oldest event of each lease and of the list}}
local now = tonumber(redis.call('TIME')[1])
local slot = math.floor(now / 10)
local in_flight, done, heads = 0, 0, {}

local function see(key)
  local event = redis.call('LINDEX', key, 0)
  if event then
    heads[#heads + 1] = string.sub(event, 1, ARGV[2])
  end
end

for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
  in_flight = in_flight + redis.call('LLEN', ARGV[1] .. id)
  see(ARGV[1] .. id)
end
for past = slot - 3, slot - 1 do
  done = done + (redis.call('HGET', KEYS[3], past) or 0)
end
see(KEYS[1])
local drained = redis.call('ZREVRANGE', KEYS[4], 0, 0, 'WITHSCORES')
return {redis.call('LLEN', KEYS[1]), in_flight, done, now, tonumber(drained[2] or 0), heads}

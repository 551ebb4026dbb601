-- Takes a lease: an expired one first, else a new one of the oldest events.
-- KEYS: list, leases (sorted set: id -> deadline in ms), attempts (hash: id -> redeliveries),
--       ledger (hash: epoch, accepted)
-- ARGV: the new lease's id, its time in ms, most events, most bytes, prefix of leases' lists,
--       a new epoch's id, ms ahead that a deadline can lie
-- Returns {id, attempts, {event, …}, epoch}, or {} when there is nothing to do.
local lease = ARGV[5] .. ARGV[1]
-- A script that has begun to write may go on when memory is short, so that what waits can leave;
-- and a server that is the master no more says so, even when nothing waits.
redis.call('DEL', lease)
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local deadline = now + ARGV[2]

local function epoch()
  redis.call('HSETNX', KEYS[4], 'epoch', ARGV[6])
  return redis.call('HGET', KEYS[4], 'epoch')
end

local expired = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 100)
if #expired == 0 then
  -- Nobody sets such a deadline: the clock was turned back since.
  expired = redis.call('ZRANGEBYSCORE', KEYS[2], now + ARGV[7], '+inf', 'LIMIT', 0, 100)
end
for _, id in ipairs(expired) do
  local events = redis.call('LRANGE', ARGV[5] .. id, 0, -1)
  if #events > 0 then
    redis.call('ZADD', KEYS[2], deadline, id)
    return {id, 1 + redis.call('HINCRBY', KEYS[3], id, 1), events, epoch()}
  end
  -- A script that died before it moved anything: its lease holds nothing.
  redis.call('ZREM', KEYS[2], id)
  redis.call('HDEL', KEYS[3], id)
end

if redis.call('LLEN', KEYS[1]) == 0 then
  return {}
end
-- The lease is known before the first event moves: a script that fails half-way is not rolled
-- back, and this way no event is ever in neither place.
redis.call('ZADD', KEYS[2], deadline, ARGV[1])
local events, bytes = {}, 0
local most_events, most_bytes = tonumber(ARGV[3]), tonumber(ARGV[4])
local waiting = redis.call('LLEN', KEYS[1])
if waiting <= most_events then
  -- Where all that waits fits, the list becomes the lease: moving each event costs three times as
  -- much. A few are read at once, since they may be large.
  local read = 0
  while read < waiting and bytes < most_bytes do
    local some = redis.call('LRANGE', KEYS[1], read, read + 99)
    for _, event in ipairs(some) do
      bytes = bytes + #event
      events[#events + 1] = event
    end
    read = read + #some
  end
  if read == waiting and bytes - #events[read] < most_bytes then
    redis.call('RENAME', KEYS[1], lease)
    -- What it inherits is the time after which a queue that everybody left is let go.
    redis.call('PERSIST', lease)
    return {ARGV[1], 1, events, epoch()}
  end
  events, bytes = {}, 0
end
while #events < most_events and bytes < most_bytes do
  local event = redis.call('LMOVE', KEYS[1], lease, 'LEFT', 'RIGHT')
  if not event then
    break
  end
  events[#events + 1] = event
  bytes = bytes + #event
end
return {ARGV[1], 1, events, epoch()}

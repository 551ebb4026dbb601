-- Grants permits from counters that end with their windows, never more than a limit in all.
-- KEYS: the counter of each claim
-- ARGV: for each claim its limit, window in ms, permits wanted, permits that were used already
-- Returns for each claim: permits granted, permits taken in all, ms left (0: no window has begun)
local answers = {}
for place, key in ipairs(KEYS) do
  local first = 4 * place - 3
  local limit, window = tonumber(ARGV[first]), tonumber(ARGV[first + 1])
  local wanted, spent = tonumber(ARGV[first + 2]), tonumber(ARGV[first + 3])
  local taken, left = tonumber(redis.call('GET', key) or 0), redis.call('PTTL', key)
  -- More than the window is left when the limit's period was another one before.
  if left <= 0 or left > window then
    taken, left = 0, 0
  end
  local granted = math.max(0, math.min(wanted, limit - taken - spent))
  if granted + spent > 0 then
    taken = taken + granted + spent
    if left > 0 then
      redis.call('INCRBY', key, granted + spent)
    else
      left = window
      redis.call('SET', key, taken, 'PX', window)
    end
  end
  for _, answer in ipairs({granted, taken, left}) do
    answers[#answers + 1] = answer
  end
end
return answers

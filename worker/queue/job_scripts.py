"""The atomic steps of a job's record, in Lua. Times are the server's, in milliseconds.

job:{id}              hash: see `job.Job.from_record`; besides: worker, device, beat_until, proposed_at
jobs                  sorted set: every job, by the time it was ordered
jobs:open             sorted set: jobs that are not over, in the order in which they are to be trained
jobs:counter          counter behind that order
jobs:shown:{platform} set: the jobs that the platform's adapter keeps people informed of
jobs:heard:{platform} string: until when its people were told of models that could not be loaded
device:{device}       string: the job that trains on the device; gone when its worker shows no sign of life
"""

from __future__ import annotations

from typing import Final

KEPT_S: Final = 90 * 24 * 3600  # how long the record of a job that is over stays

_COMMON: Final = f"""
local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function field(id, name) return redis.call('HGET', 'job:' .. id, name) or '' end

local function is_lapsed(id) return (tonumber(field(id, 'beat_until')) or 0) < now() end

local function close(id)
  redis.call('ZREM', 'jobs:open', id)
  redis.call('EXPIRE', 'job:' .. id, {KEPT_S})
  redis.call('EXPIRE', 'job:' .. id .. ':curve', {KEPT_S})
end

-- A proposal that stood longer than `most` ms is over, whoever notices it first; say whether it was one.
local function lapse(id, most, reason)
  if field(id, 'state') ~= 'proposed' then return false end
  -- A record of an earlier version says only when it was ordered.
  local since = tonumber(field(id, 'proposed_at')) or tonumber(field(id, 'created_at')) * 1000
  if since + most > now() then return false end
  redis.call('HSET', 'job:' .. id, 'state', 'cancelled', 'reason', reason)
  close(id)
  return true
end
"""

# ARGV id, order, time
SUBMIT: Final = """
redis.call('HSET', 'job:' .. ARGV[1], 'order', ARGV[2], 'state', 'checking', 'created_at', ARGV[3])
redis.call('ZADD', 'jobs', ARGV[3], ARGV[1])
redis.call('ZADD', 'jobs:open', redis.call('INCR', 'jobs:counter'), ARGV[1])
"""

# ARGV kind (check or train), worker, device, lease in ms, what the device was called before; returns the id of the job
# to work on, or nothing
CLAIM: Final = (
    _COMMON
    + """
local kind, worker, device, lease, former = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local busy = 'device:' .. device
if kind == 'train' and redis.call('EXISTS', busy) == 1 then return false end

local function fits(id)
  local state, own = field(id, 'state'), field(id, 'device')
  if kind == 'check' then return state == 'checking' and is_lapsed(id) end
  local is_ours = own == device or own == former
  if state == 'queued' then return own == '' or is_ours end
  -- Half-done work lies in one data folder: only a worker of that folder and device can go on with it.
  return (state == 'training' or state == 'judging') and is_ours and is_lapsed(id)
end

for _, id in ipairs(redis.call('ZRANGE', 'jobs:open', 0, -1)) do
  if fits(id) then
    local key = 'job:' .. id
    redis.call('HINCRBY', key, 'fence', 1)
    redis.call('HINCRBY', key, 'num_claims', 1)
    redis.call('HSET', key, 'worker', worker, 'beat_until', now() + lease)
    if kind == 'train' then
      redis.call('HSET', key, 'device', device)
      if field(id, 'state') == 'queued' then redis.call('HSET', key, 'state', 'training') end
      redis.call('SET', busy, id, 'PX', lease)
    end
    return id
  end
end
return false
"""
)

# ARGV id, fence, device, lease in ms, progress or ''; returns 1 if it is to be cancelled, 0 if not, -1 if it is lost
BEAT: Final = (
    _COMMON
    + """
local id, key, lease = ARGV[1], 'job:' .. ARGV[1], tonumber(ARGV[4])
if field(id, 'fence') ~= ARGV[2] then return -1 end
redis.call('HSET', key, 'beat_until', now() + lease)
if ARGV[5] ~= '' then redis.call('HSET', key, 'progress', ARGV[5]) end
local state = field(id, 'state')
if state == 'training' or state == 'judging' then redis.call('SET', 'device:' .. ARGV[3], id, 'PX', lease) end
return field(id, 'wants_cancel') == '1' and 1 or 0
"""
)

# ARGV id, fence, device, then what to set, name by name; returns 1, or 0 if the fence is stale.
# A job that is over or waits for a person is nobody's: the device is free, and nobody's heartbeat is missed.
MOVE: Final = (
    _COMMON
    + """
local id, device = ARGV[1], 'device:' .. ARGV[3]
if field(id, 'fence') ~= ARGV[2] then return 0 end
redis.call('HSET', 'job:' .. id, unpack(ARGV, 4))
local state = field(id, 'state')
if state ~= 'training' and state ~= 'judging' then
  redis.call('HSET', 'job:' .. id, 'beat_until', 0)
  if redis.call('GET', device) == id then redis.call('DEL', device) end
end
if state == 'proposed' then redis.call('HSET', 'job:' .. id, 'proposed_at', now()) end
local ends = { promoted = 1, refused = 1, failed = 1, cancelled = 1, compared = 1 }
if ends[state] then close(id) end
return 1
"""
)

# ARGV id, fence, device; lets go of a job that somebody is to take up again
RELEASE: Final = (
    _COMMON
    + """
if field(ARGV[1], 'fence') ~= ARGV[2] then return 0 end
redis.call('HSET', 'job:' .. ARGV[1], 'beat_until', 0)
redis.call('HINCRBY', 'job:' .. ARGV[1], 'num_claims', -1)
if redis.call('GET', 'device:' .. ARGV[3]) == ARGV[1] then redis.call('DEL', 'device:' .. ARGV[3]) end
return 1
"""
)

# ARGV id, by whom, how long a proposal stands in ms, what is said of one that lapsed; returns 1 if it waits to be
# trained now
CONFIRM: Final = (
    _COMMON
    + """
if lapse(ARGV[1], tonumber(ARGV[3]), ARGV[4]) or field(ARGV[1], 'state') ~= 'proposed' then return 0 end
redis.call('HSET', 'job:' .. ARGV[1], 'state', 'queued', 'confirmed_by', ARGV[2], 'num_claims', 0, 'beat_until', 0)
redis.call('ZADD', 'jobs:open', redis.call('INCR', 'jobs:counter'), ARGV[1])
return 1
"""
)

# ARGV how long a proposal stands in ms, what is said of one that lapsed; returns the ids of those that did
LAPSE: Final = (
    _COMMON
    + """
local lapsed = {}
for _, id in ipairs(redis.call('ZRANGE', 'jobs:open', 0, -1)) do
  if lapse(id, tonumber(ARGV[1]), ARGV[2]) then lapsed[#lapsed + 1] = id end
end
return lapsed
"""
)

# ARGV id, reason; returns the state after it, '' for a job that is over or unknown.
# What nobody works on (any more) ends at once; whoever works on it hears of it with the next heartbeat.
CANCEL: Final = (
    _COMMON
    + """
local id, state = ARGV[1], field(ARGV[1], 'state')
if state == '' or redis.call('ZSCORE', 'jobs:open', id) == false then return '' end
redis.call('HSET', 'job:' .. id, 'wants_cancel', '1', 'reason', ARGV[2])
if is_lapsed(id) then
  redis.call('HINCRBY', 'job:' .. id, 'fence', 1)
  redis.call('HSET', 'job:' .. id, 'state', 'cancelled')
  close(id)
  return 'cancelled'
end
return state
"""
)

"""The atomic steps of the mailbox, in Lua. Each runs in Redis as a whole or not at all.

KEYS are `keys.script_keys` in that order. Times are the server's, so that hosts' clocks need not agree.
A message is stored as `resets json`: how often the conversation had been forgotten when it was submitted.
"""

from __future__ import annotations

from typing import Final

_COMMON: Final = """
local MAILBOX, PENDING, CLAIM, HISTORY, STATE = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local OUTBOX, CLAIMS, QUEUED, FENCES, DEAD = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local NEWEST_TAKEN, TASKS = KEYS[11], KEYS[12]

local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

local function counter(name) return redis.call('HGET', STATE, name) or '0' end

local function holds(fence) return redis.call('HGET', CLAIM, 'fence') == fence end

-- Give the claim a new fence; whoever held the old one holds nothing any more.
local function fence_anew(conversation, lease)
  local fence = redis.call('INCR', FENCES)
  redis.call('HSET', CLAIM, 'fence', fence, 'taken', 0, 'worker', '')
  redis.call('ZADD', CLAIMS, now() + lease, conversation)
  redis.call('ZADD', QUEUED, fence, conversation)
  return fence
end

local function release(conversation)
  redis.call('DEL', CLAIM)
  redis.call('ZREM', CLAIMS, conversation)
  redis.call('ZREM', QUEUED, conversation)
end

local function parsed(line)
  local resets, json = string.match(line, '^(%d+) (.*)$')
  return tonumber(resets), cjson.decode(json)
end

local function is_forgotten(line)
  local resets = parsed(line)
  return resets < tonumber(counter('resets'))
end
"""

# ARGV conversation, message, submission, lease, seconds to remember the message
SUBMIT: Final = (
    _COMMON
    + """
local SEEN, WORKERS = KEYS[13], KEYS[14]
local conversation, message, submission, lease = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])

redis.call('ZREMRANGEBYSCORE', WORKERS, '-inf', now())
local num_workers = redis.call('ZCARD', WORKERS)
local function answer(fence, is_duplicate)
  return {fence, redis.call('ZRANK', QUEUED, conversation) or 0, is_duplicate, num_workers}
end

if SEEN ~= '' and not redis.call('SET', SEEN, submission, 'NX', 'EX', ARGV[5]) then
  -- Our own attempt whose answer got lost is no duplicate; its claim may still need a task.
  if redis.call('GET', SEEN) ~= submission then return answer(0, 1) end
  local is_queued = redis.call('ZSCORE', QUEUED, conversation)
  return answer(is_queued and redis.call('HGET', CLAIM, 'fence') or 0, 0)
end
redis.call('RPUSH', MAILBOX, counter('resets') .. ' ' .. message)
if redis.call('EXISTS', CLAIM) == 1 then return answer(0, 0) end
return answer(fence_anew(conversation, lease), 0)
"""
)

_TAKE: Final = """
-- Bring the pending messages into a history that was begun anew since they were taken.
local function settle_pending()
  if redis.call('HGET', CLAIM, 'epoch') == counter('epoch') then return end
  local lines = redis.call('LRANGE', PENDING, 0, -1)
  redis.call('DEL', PENDING)
  for _, line in ipairs(lines) do
    local _, message = parsed(line)
    if message.kind == 'say' and not is_forgotten(line) then
      redis.call('RPUSH', PENDING, line)
      redis.call('RPUSH', HISTORY, message.turn)
    end
  end
end

-- Move the next messages that are answered together from the mailbox to `pending`, their turns into the history.
local function move_next(max_together)
  local author, num_moved = nil, 0
  while num_moved < max_together do
    local line = redis.call('LINDEX', MAILBOX, 0)
    if not line then return end
    if is_forgotten(line) then
      redis.call('LPOP', MAILBOX)
    else
      local _, message = parsed(line)
      if author and (message.author ~= author or message.kind ~= 'say') then return end
      redis.call('LPOP', MAILBOX)
      redis.call('RPUSH', PENDING, line)
      num_moved = num_moved + 1
      if message.kind ~= 'say' then return end
      redis.call('RPUSH', HISTORY, message.turn)
      author = message.author
    end
  end
end

-- Take what is to be answered next; release the claim if there is nothing.
local function take(conversation, worker, lease, max_together, max_turns, turns_after_cut)
  settle_pending()
  if redis.call('LLEN', PENDING) == 0 then move_next(max_together) end
  if redis.call('LLEN', PENDING) == 0 then
    release(conversation)
    return {'idle', 0, 0, {}, {}}
  end
  if redis.call('LLEN', HISTORY) > max_turns then redis.call('LTRIM', HISTORY, -turns_after_cut, -1) end
  local deaths = redis.call('HGET', CLAIM, 'deaths') or '0'
  local is_suspect = deaths ~= '0'
  redis.call('HSET', CLAIM, 'taken', 1, 'worker', worker, 'epoch', counter('epoch'), 'begun', is_suspect and 0 or 1)
  redis.call('ZADD', CLAIMS, now() + lease, conversation)
  redis.call('ZREM', QUEUED, conversation)
  local fence = redis.call('HGET', CLAIM, 'fence')
  if tonumber(fence) > tonumber(redis.call('GET', NEWEST_TAKEN) or 0) then redis.call('SET', NEWEST_TAKEN, fence) end
  return {
    'taken',
    fence,
    deaths,
    redis.call('LRANGE', PENDING, 0, -1),
    redis.call('LRANGE', HISTORY, 0, -1),
  }
end
"""

# ARGV conversation, fence, worker, lease, max_together, max_turns, turns_after_cut
TAKE: Final = (
    _COMMON
    + _TAKE
    + """
if not holds(ARGV[2]) or redis.call('HGET', CLAIM, 'taken') == '1' then return {'stale', 0, 0, {}, {}} end
return take(ARGV[1], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]))
"""
)

# ARGV conversation, fence: 1 if the claim is still ours
BEGIN: Final = (
    _COMMON
    + """
if not holds(ARGV[2]) then return 0 end
redis.call('HSET', CLAIM, 'begun', 1)
return 1
"""
)

# ARGV as TAKE, then: bot turn or '', outbox entry, the replaced turn or '', '1' to bury, '1' to take the next at once
FINISH: Final = (
    _COMMON
    + _TAKE
    + """
local conversation, fence, worker, lease = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local bot_turn, entry, replaced, buries, takes_next = ARGV[8], ARGV[9], ARGV[10], ARGV[11] == '1', ARGV[12] == '1'

if not holds(fence) or redis.call('HGET', CLAIM, 'taken') ~= '1' then return {'stale', 0, 0, {}, {}} end

local outcome = 'delivered'
if redis.call('HGET', CLAIM, 'epoch') ~= counter('epoch') then
  outcome = 'begun anew'  -- the reply belongs to a history that is gone: what still counts is asked again
else
  if buries then
    for _, line in ipairs(redis.call('LRANGE', PENDING, 0, -1)) do
      local _, message = parsed(line)
      redis.call('RPUSH', DEAD, conversation .. ' ' .. line)
      if message.kind == 'say' then redis.call('LREM', HISTORY, -1, message.turn) end
    end
    redis.call('LTRIM', DEAD, -100, -1)
  end
  if bot_turn ~= '' then
    if replaced ~= '' and redis.call('LINDEX', HISTORY, -1) == replaced then redis.call('RPOP', HISTORY) end
    redis.call('RPUSH', HISTORY, bot_turn)
  end
  redis.call('XADD', OUTBOX, '*', 'entry', entry)
  redis.call('DEL', PENDING)
  redis.call('HDEL', CLAIM, 'deaths')
end

if redis.call('LLEN', PENDING) == 0 and redis.call('LLEN', MAILBOX) == 0 then
  release(conversation)
  return {'idle', 0, 0, {}, {}, outcome}
end
local next_fence = fence_anew(conversation, lease)
if not takes_next then return {'queued', next_fence, 0, {}, {}, outcome} end
local taken = take(conversation, worker, lease, tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]))
taken[6] = outcome
return taken
"""
)

# ARGV conversation, fence, lease: 1 if the claim is still ours
RENEW: Final = (
    _COMMON
    + """
if not holds(ARGV[2]) then return 0 end
redis.call('ZADD', CLAIMS, now() + tonumber(ARGV[3]), ARGV[1])
return 1
"""
)

# ARGV conversation, lease: the fence to send a task for, 0 if the claim needs none
REVIVE: Final = (
    _COMMON
    + """
local conversation, lease = ARGV[1], tonumber(ARGV[2])
local ends = redis.call('ZSCORE', CLAIMS, conversation)
if not ends or tonumber(ends) > now() then return 0 end
if redis.call('EXISTS', CLAIM) == 0 then
  redis.call('ZREM', CLAIMS, conversation)
  return 0
end
if redis.call('HGET', CLAIM, 'taken') == '1' then
  if redis.call('HGET', CLAIM, 'begun') == '1' then redis.call('HINCRBY', CLAIM, 'deaths', 1) end
  return fence_anew(conversation, lease)
end
redis.call('ZADD', CLAIMS, now() + lease, conversation)
local fence = tonumber(redis.call('HGET', CLAIM, 'fence'))
-- Tasks are taken in the order of their fences: while tasks wait and no later one was taken, this one waits as well.
if redis.call('LLEN', TASKS) > 0 and fence > tonumber(redis.call('GET', NEWEST_TAKEN) or 0) then return 0 end
-- It was lost. The same fence again, of which only one is taken.
return fence
"""
)

# KEYS workers, claims; ARGV worker, lease, most claims to return: conversations whose lease has ended
EXPIRED: Final = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if ARGV[1] ~= '' then redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), ARGV[1]) end
return redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, ARGV[3])
"""

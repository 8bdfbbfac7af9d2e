"""The atomic steps of the mailbox, in Lua. Each runs in Redis as a whole or not at all.

KEYS are `keys.script_keys` in that order. Times are the server's, so that hosts' clocks need not agree.
A message is stored as `resets json`: how often the conversation had been forgotten when it was submitted.
A task comes in two halves, between which its fence belongs (see `task`); Celery takes from the other end of the list.

Every call of Redis from Lua costs microseconds, some of them tens: fields are read together, and once.
"""

from __future__ import annotations

from typing import Final

_COMMON: Final = """
local MAILBOX, PENDING, CLAIM, HISTORY, STATE = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local OUTBOX, CLAIMS, QUEUED, FENCES, DEAD = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local NEWEST_TAKEN, TASKS, SETTINGS, SETTINGS_OF_PLACE = KEYS[11], KEYS[12], KEYS[13], KEYS[14]

local time, counters

local function now()
  time = time or redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

-- How often the history was begun anew, and how often it was forgotten.
local function epoch_and_resets()
  counters = counters or redis.call('HMGET', STATE, 'epoch', 'resets')
  return counters[1] or '0', counters[2] or '0'
end

local function holds(fence) return redis.call('HGET', CLAIM, 'fence') == fence end

local function send_task(before, fence, after) redis.call('LPUSH', TASKS, before .. fence .. after) end

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

-- Nothing for a line that is no message: whoever takes it sets it aside.
local function parsed(line)
  local resets, json = string.match(line, '^(%d+) (.*)$')
  local is_json, message = pcall(cjson.decode, json or '')
  if is_json and type(message) == 'table' and type(message.turn) == 'string' then return tonumber(resets), message end
end

local function bury(conversation, line)
  local _, message = parsed(line)
  redis.call('RPUSH', DEAD, conversation .. ' ' .. line)
  redis.call('LTRIM', DEAD, -100, -1)
  if message and message.kind == 'say' then redis.call('LREM', HISTORY, -1, message.turn) end
end

local function is_before_reset(resets)
  local _, now_resets = epoch_and_resets()
  return resets < tonumber(now_resets)
end
"""

# ARGV conversation, message, submission, lease, seconds to remember the message, the task's halves
SUBMIT: Final = (
    _COMMON
    + """
local SEEN, WORKERS = KEYS[15], KEYS[16]
local conversation, message, submission, lease = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])

local num_workers = redis.call('ZCOUNT', WORKERS, now(), '+inf')
local function answer(fence, is_duplicate)
  return {fence, redis.call('ZRANK', QUEUED, conversation) or 0, is_duplicate, num_workers}
end

if SEEN ~= '' and not redis.call('SET', SEEN, submission, 'NX', 'EX', ARGV[5]) then
  -- Our own attempt whose answer got lost is no duplicate.
  if redis.call('GET', SEEN) ~= submission then return answer(0, 1) end
  local is_queued = redis.call('ZSCORE', QUEUED, conversation)
  return answer(is_queued and redis.call('HGET', CLAIM, 'fence') or 0, 0)
end
local _, resets = epoch_and_resets()
redis.call('RPUSH', MAILBOX, resets .. ' ' .. message)
if redis.call('EXISTS', CLAIM) == 1 then return answer(0, 0) end
local fence = fence_anew(conversation, lease)
send_task(ARGV[6], fence, ARGV[7])
return answer(fence, 0)
"""
)

_TAKE: Final = """
-- Bring the pending messages into a history that was begun anew since they were taken.
local function settle_pending()
  local lines = redis.call('LRANGE', PENDING, 0, -1)
  redis.call('DEL', PENDING)
  for _, line in ipairs(lines) do
    local resets, message = parsed(line)
    if not message then
      redis.call('RPUSH', PENDING, line)
    elseif message.kind == 'say' and not is_before_reset(resets) then
      redis.call('RPUSH', PENDING, line)
      redis.call('RPUSH', HISTORY, message.turn)
    end
  end
end

-- Move the next messages that are answered together from the mailbox to `pending`, their turns into the history.
local function move_next(max_together)
  local author, moved = nil, {}
  while #moved < max_together do
    local line = redis.call('LINDEX', MAILBOX, 0)
    if not line then return moved end
    local resets, message = parsed(line)
    if message and is_before_reset(resets) then
      redis.call('LPOP', MAILBOX)
    else
      if author and not (message and message.author == author and message.kind == 'say') then return moved end
      redis.call('LPOP', MAILBOX)
      redis.call('RPUSH', PENDING, line)
      moved[#moved + 1] = line
      if not message or message.kind ~= 'say' then return moved end
      redis.call('RPUSH', HISTORY, message.turn)
      author = message.author
    end
  end
  return moved
end

-- Take what is to be answered next; release the claim if there is nothing.
local function take(conversation, worker, lease, max_together, max_turns, turns_after_cut)
  local fence, taken_epoch, deaths = unpack(redis.call('HMGET', CLAIM, 'fence', 'epoch', 'deaths'))
  local epoch = epoch_and_resets()
  if taken_epoch and taken_epoch ~= epoch then settle_pending() end
  local pending = redis.call('LRANGE', PENDING, 0, -1)
  if #pending == 0 then pending = move_next(max_together) end
  if #pending == 0 then
    release(conversation)
    return {'idle'}
  end
  if redis.call('LLEN', HISTORY) > max_turns then redis.call('LTRIM', HISTORY, -turns_after_cut, -1) end
  redis.call('HSET', CLAIM, 'taken', 1, 'worker', worker, 'epoch', epoch, 'begun', deaths and 0 or 1)
  redis.call('ZADD', CLAIMS, now() + lease, conversation)
  redis.call('ZREM', QUEUED, conversation)
  if tonumber(fence) > tonumber(redis.call('GET', NEWEST_TAKEN) or 0) then redis.call('SET', NEWEST_TAKEN, fence) end
  return {
    'taken',
    fence,
    deaths or '0',
    pending,
    redis.call('LRANGE', HISTORY, 0, -1),
    redis.call('HGETALL', SETTINGS),
    SETTINGS_OF_PLACE == '' and {} or redis.call('HGETALL', SETTINGS_OF_PLACE),
  }
end
"""

# ARGV conversation, fence, worker, lease, max_together, max_turns, turns_after_cut
TAKE: Final = (
    _COMMON
    + _TAKE
    + """
local fence, is_taken = unpack(redis.call('HMGET', CLAIM, 'fence', 'taken'))
if fence ~= ARGV[2] or is_taken == '1' then return {'stale'} end
return take(ARGV[1], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]))
"""
)

# ARGV as TAKE, then lines that are no messages: set aside as dead. Returns what TAKE would of the rest.
DISCARD: Final = (
    _COMMON
    + _TAKE
    + """
if not holds(ARGV[2]) then return {'stale'} end
for index = 8, #ARGV do
  redis.call('LREM', PENDING, 1, ARGV[index])
  bury(ARGV[1], ARGV[index])
end
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

# ARGV as TAKE, then: bot turn or '', outbox entry, the replaced turn or '', '1' to bury, the halves of a task for what
# is left, both '' to take that at once. Returns whether the entry was delivered, and what TAKE would.
FINISH: Final = (
    _COMMON
    + _TAKE
    + """
local conversation, fence, worker, lease = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local bot_turn, entry, replaced, buries, task_before, task_after = unpack(ARGV, 8)

local held, is_taken, taken_epoch, deaths = unpack(redis.call('HMGET', CLAIM, 'fence', 'taken', 'epoch', 'deaths'))
if held ~= fence or is_taken ~= '1' then return {0, 'stale'} end

-- A reply that belongs to a history that is gone is not said: what still counts is asked again.
local is_delivered = taken_epoch == epoch_and_resets()
if is_delivered then
  if buries == '1' then
    for _, line in ipairs(redis.call('LRANGE', PENDING, 0, -1)) do bury(conversation, line) end
  end
  if bot_turn ~= '' then
    if replaced ~= '' and redis.call('LINDEX', HISTORY, -1) == replaced then redis.call('RPOP', HISTORY) end
    redis.call('RPUSH', HISTORY, bot_turn)
  end
  redis.call('XADD', OUTBOX, '*', 'entry', entry)
  redis.call('DEL', PENDING)
  if deaths then redis.call('HDEL', CLAIM, 'deaths') end
end
local told = is_delivered and 1 or 0

if (is_delivered or redis.call('LLEN', PENDING) == 0) and redis.call('LLEN', MAILBOX) == 0 then
  release(conversation)
  return {told, 'idle'}
end
local next_fence = fence_anew(conversation, lease)
if task_before ~= '' then
  send_task(task_before, next_fence, task_after)
  return {told, 'queued'}
end
return {told, unpack(take(conversation, worker, lease, tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])))}
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

# ARGV conversation, lease, the task's halves: the fence for which the task was sent, 0 if the claim needs none
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
  local next_fence = fence_anew(conversation, lease)
  send_task(ARGV[3], next_fence, ARGV[4])
  return next_fence
end
redis.call('ZADD', CLAIMS, now() + lease, conversation)
local fence = tonumber(redis.call('HGET', CLAIM, 'fence'))
-- Tasks are taken in the order of their fences: while tasks wait and no later one was taken, this one waits as well.
if redis.call('LLEN', TASKS) > 0 and fence > tonumber(redis.call('GET', NEWEST_TAKEN) or 0) then return 0 end
-- It was lost. The same fence again, of which only one is taken.
send_task(ARGV[3], fence, ARGV[4])
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

"""Chat data as instruct models take it (messages, prompt and completion, ShareGPT), and BYU's chit-chat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from personas.conversation import Role, Turn
from trainer.formats.dialogue import DataError, Dialogue, Reading, turns_of
from trainer.formats.files import dialogues_from, json_lines, whole_json

SPEAKERS = {
    "user": Role.USER,
    "human": Role.USER,
    "prompter": Role.USER,
    "assistant": Role.BOT,
    "gpt": Role.BOT,
    "chatgpt": Role.BOT,
    "bot": Role.BOT,
    "model": Role.BOT,
}
MESSAGES = '{"messages": [{"role": "system", "user" or "assistant", "content": text}]}'
COMPLETION = '{"prompt": text or messages, "completion": text or messages}'
SHAREGPT = '{"conversations": [{"from": "system", "human" or "gpt", "value": text}]}'
CHITCHAT = '{"id": {"messages": [[{"text", "sender"}]]}}'


def read_messages(reading: Reading) -> Iterator[Dialogue]:
    """JSON Lines of `messages`; what the system says are the facts, one a line."""

    def build(data: dict[str, Any]) -> Dialogue:
        return _dialogue([(m["role"], _text(m["content"])) for m in data["messages"]])

    return dialogues_from(reading, json_lines(reading), build, MESSAGES)


def read_completion(reading: Reading) -> Iterator[Dialogue]:
    """JSON Lines of `prompt` and `completion`, each a text or a list of messages; only the completion is trained."""

    def build(data: dict[str, Any]) -> Dialogue:
        prompt, completion = _said(data["prompt"], "user"), _said(data["completion"], "assistant")
        dialogue = _dialogue([*prompt, *completion])
        num_before = len(_dialogue(prompt).turns)
        return replace(dialogue, untrained=frozenset(range(num_before)))

    return dialogues_from(reading, json_lines(reading), build, COMPLETION)


def read_sharegpt(reading: Reading) -> Iterator[Dialogue]:
    """ShareGPT: an array, or an object a line, of `conversations`."""

    def build(data: dict[str, Any]) -> Dialogue:
        return _dialogue([(m["from"], _text(m["value"])) for m in data["conversations"]])

    return dialogues_from(reading, json_lines(reading), build, SHAREGPT)


def read_chitchat(reading: Reading) -> Iterator[Dialogue]:
    """BYU's chit-chat: an object of dialogues, several messages a turn; the second sender is the bot."""

    def entries() -> Iterator[tuple[str, Any]]:
        data = whole_json(reading.path, "one JSON object of dialogues")
        if not isinstance(data, dict):
            raise DataError(f"{reading.path}: expected {CHITCHAT}")
        for key, entry in data.items():
            reading.count()
            yield f"dialogue {key}", entry

    def build(entry: dict[str, Any]) -> Dialogue:
        messages = [message for group in entry["messages"] for message in group]
        senders = list(dict.fromkeys(message["sender"] for message in messages))
        pairs = [(1 + min(senders.index(message["sender"]), 1), message["text"]) for message in messages]
        return Dialogue((), turns_of(pairs))

    return dialogues_from(reading, entries(), build, CHITCHAT)


def _dialogue(messages: Sequence[tuple[str, str]]) -> Dialogue:
    facts: list[str] = []
    turns: list[Turn] = []
    for speaker, text in messages:
        if speaker == "system":
            facts += [line.strip() for line in text.splitlines() if line.strip()]
        elif speaker not in SPEAKERS:
            raise ValueError(f"unknown speaker {speaker!r}; known: system, {', '.join(SPEAKERS)}")
        elif text.strip():
            turns.append(Turn(SPEAKERS[speaker], text.strip()))
    return Dialogue(tuple(facts), tuple(turns), has_roles=True)


def _said(value: object, speaker: str) -> list[tuple[str, str]]:
    if isinstance(value, list):
        return [(message["role"], _text(message["content"])) for message in value]
    return [(speaker, _text(value))]


def _text(content: object) -> str:
    """Return a message's text, which may come in pieces."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part.get("type") == "text")
    if not isinstance(content, str):
        raise TypeError(f"expected a text, got {str(content)[:40]!r}")
    return content

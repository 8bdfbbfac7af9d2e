"""Layouts: the rule that turns persona + turns into token ids, the same for training and for serving.

Pure functions over a tokenizer; knows nothing of models, Redis or platforms. Two layouts so far:

- `persona`: `<bos> facts (<speaker2> user <eos> | <speaker1> bot <eos>)*`, speakers by role, no token types;
- `chat`: the base model's own chat template, with the facts as the system message.

Text that people wrote is never parsed as markup: it goes through a tokenizer in which special tokens are plain text.
"""

from __future__ import annotations

import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from tokenizers import Tokenizer

from personas.conversation import Role, Turn
from personas.errors import LayoutError
from personas.persona import ExampleTurn

LAYOUT_FILE = "layout.json"
TEMPLATE_FILE = "chat_template.jinja"
PERSONA_TOKENS = ("<pad>", "<bos>", "<eos>", "<speaker1>", "<speaker2>")
MAX_NAME_CHARS = 32
# Cutting down to three quarters at a time keeps the start of the prompt, and so a cached prefix, for many turns.
KEPT_SHARE = 0.75
# An over-long persona may take half of the window; what is left is for the dialogue.
PERSONA_SHARE = 0.5


class Part(IntEnum):
    """What a token is for the loss: not predicted, the text of a turn, or the token that ends it."""

    CONTEXT = 0
    TEXT = 1
    STOP = 2


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids that end where the reply begins, and what had to be left out to fit the window."""

    ids: list[int]
    num_dropped_turns: int = 0
    num_dropped_facts: int = 0
    is_last_turn_cut: bool = False


@dataclass(frozen=True, slots=True)
class Block:
    """One encoded turn: ids with the `Part` of each."""

    ids: list[int]
    parts: list[Part]


@dataclass(frozen=True, slots=True)
class Example:
    """A training sequence: ids, and the `Part` that each plays (CONTEXT carries no loss)."""

    ids: list[int]
    parts: list[Part]


class Layout(ABC):
    """Turns facts and turns into ids. `max_tokens` is the window it was trained for."""

    name: str
    version: int = 1

    def __init__(self, folder_or_tokenizer: Path | str, *, max_tokens: int) -> None:
        text = (
            folder_or_tokenizer
            if isinstance(folder_or_tokenizer, str)
            else (folder_or_tokenizer / "tokenizer.json").read_text(encoding="utf-8")
        )
        self.max_tokens = max_tokens
        self._markup = Tokenizer.from_str(text)
        self._plain = Tokenizer.from_str(text)
        self._plain.encode_special_tokens = True

    @property
    @abstractmethod
    def stop_ids(self) -> frozenset[int]:
        """The ids that end a reply."""

    @property
    @abstractmethod
    def banned_ids(self) -> frozenset[int]:
        """The ids that may never be sampled within a reply."""

    @property
    @abstractmethod
    def pad_id(self) -> int:
        """The id that fills batches."""

    @abstractmethod
    def prefix(self, facts: Sequence[str]) -> list[int]:
        """Encode what precedes the first turn."""

    @abstractmethod
    def block(self, role: Role, text: str) -> Block:
        """Encode one turn with its speaker mark and its end."""

    @abstractmethod
    def reply_header(self) -> list[int]:
        """Encode what stands before the first token of a reply."""

    def encode(self, text: str) -> list[int]:
        """Encode text that a person wrote: special tokens in it are plain characters."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    def text(self, ids: Iterable[int]) -> str:
        """Decode a reply, without markup."""
        drop = self.stop_ids | self.banned_ids
        decoded: str = self._markup.decode([i for i in ids if i not in drop], skip_special_tokens=False)
        return decoded.strip()

    @property
    def vocabulary_size(self) -> int:
        """The number of ids the tokenizer can produce."""
        size: int = self._markup.get_vocab_size(with_added_tokens=True)
        return size

    def prompt(
        self,
        facts: Sequence[str],
        turns: Sequence[Turn],
        *,
        max_tokens: int,
        reserve: int,
        examples: Sequence[ExampleTurn] = (),
    ) -> Prompt:
        """Encode the prompt for the next reply within `max_tokens - reserve` tokens.

        What does not fit goes in this order: example dialogue, oldest turns (whole, in chunks), trailing facts,
        and only for a last turn that is longer than the window by itself, the beginning of that turn.
        """
        budget = max_tokens - min(reserve, max_tokens // 2) - len(self.reply_header())
        kept_facts = self._fitting_facts(facts, int(budget * PERSONA_SHARE))
        head = self.prefix(kept_facts)
        blocks = [self.block(role, text).ids for role, text in merged(turns)]
        room = budget - len(head)
        start = first_kept([len(ids) for ids in blocks], room)
        num_dropped = _num_turns_before(turns, start)
        tail = list(itertools.chain.from_iterable(blocks[start:]))
        is_cut = len(tail) > room
        if is_cut:
            tail = self._shortened(turns, room)
        else:
            shown = self._example_ids(examples)
            if not start and len(shown) + len(tail) <= room:
                head = head + shown
        return Prompt(head + tail + self.reply_header(), num_dropped, len(facts) - len(kept_facts), is_cut)

    def examples_of(
        self,
        facts: Sequence[str],
        turns: Sequence[Turn],
        *,
        max_tokens: int,
        roles: frozenset[Role] = frozenset({Role.BOT}),
    ) -> list[Example]:
        """Encode a dialogue for training: every turn of `roles` is a target exactly once.

        A dialogue longer than `max_tokens` becomes several examples; each later one repeats the persona and
        the latest turns as context. A turn too long for the window is left out together with what precedes it.
        """
        head = self.prefix(self._fitting_facts(facts, int(max_tokens * PERSONA_SHARE)))
        room = max_tokens - len(head)
        examples: list[Example] = []
        window: list[Block] = []
        num_fresh = 0
        for role, text in merged(turns):
            block = self.block(role, text)
            if role not in roles:
                block = Block(block.ids, [Part.CONTEXT] * len(block.ids))
            if len(block.ids) > room:
                examples += self._example(head, window, num_fresh)
                window, num_fresh = [], 0
                continue
            if sum(len(b.ids) for b in window) + len(block.ids) > room:
                examples += self._example(head, window, num_fresh)
                lengths = [len(b.ids) for b in (*window, block)]
                keep_from = first_kept(lengths, room, kept_share=0.5)
                window, num_fresh = window[keep_from:], 0
            window.append(block)
            num_fresh += 1
        return examples + self._example(head, window, num_fresh)

    def _example(self, head: list[int], window: Sequence[Block], num_fresh: int) -> list[Example]:
        stale = len(window) - num_fresh
        ids, parts = list(head), [Part.CONTEXT] * len(head)
        for index, block in enumerate(window):
            ids += block.ids
            parts += block.parts if index >= stale else [Part.CONTEXT] * len(block.ids)
        return [Example(ids, parts)] if any(parts) else []

    def _fitting_facts(self, facts: Sequence[str], budget: int) -> list[str]:
        kept = [fact.strip() for fact in facts if fact.strip()]
        while kept and len(self.prefix(kept)) > budget:
            kept.pop()
        return kept

    def _example_ids(self, examples: Sequence[ExampleTurn]) -> list[int]:
        pairs = [((Role.USER, e.user), (Role.BOT, e.bot)) for e in examples]
        return [i for pair in pairs for role, text in pair for i in self.block(role, text).ids]

    def _shortened(self, turns: Sequence[Turn], room: int) -> list[int]:
        """Encode only the last turn, without as much of its beginning as does not fit."""
        role, text = list(merged(turns))[-1]
        frame = len(self.block(role, "").ids)
        kept = self.encode(text)[-max(room - frame, 0) :]
        while kept:
            ids = self.block(role, self._markup.decode(kept, skip_special_tokens=False)).ids
            if len(ids) <= room:  # decoding half a character can lengthen the text again
                return ids
            kept = kept[max(len(ids) - room, 1) :]
        return self.block(role, "").ids

    def write(self, folder: Path) -> None:
        """Write `layout.json` and `tokenizer.json`."""
        data = {"name": self.name, "version": self.version, "max_tokens": self.max_tokens}
        (folder / LAYOUT_FILE).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        (folder / "tokenizer.json").write_text(self._markup.to_str(pretty=False), encoding="utf-8")


class PersonaLayout(Layout):
    """`<bos> facts (<speaker2> user <eos> | <speaker1> bot <eos>)*` for the GPT-2 family."""

    name = "persona"

    def __init__(self, folder_or_tokenizer: Path | str, *, max_tokens: int) -> None:
        super().__init__(folder_or_tokenizer, max_tokens=max_tokens)
        ids = [self._markup.token_to_id(token) for token in PERSONA_TOKENS]
        if None in ids:
            missing = [t for t, i in zip(PERSONA_TOKENS, ids, strict=True) if i is None]
            raise LayoutError(f"layout persona: the tokenizer lacks {', '.join(missing)}. Train with this layout, or choose another.")
        self._pad, self._bos, self._eos, self._bot, self._user = ids

    @property
    def stop_ids(self) -> frozenset[int]:
        return frozenset({self._eos})

    @property
    def banned_ids(self) -> frozenset[int]:
        return frozenset({self._pad, self._bos, self._bot, self._user})

    @property
    def pad_id(self) -> int:
        return int(self._pad)

    def prefix(self, facts: Sequence[str]) -> list[int]:
        return [self._bos, *self.encode(" ".join(facts))]

    def block(self, role: Role, text: str) -> Block:
        ids = self.encode(text)
        speaker = self._bot if role is Role.BOT else self._user
        return Block([speaker, *ids, self._eos], [Part.CONTEXT, *[Part.TEXT] * len(ids), Part.STOP])

    def reply_header(self) -> list[int]:
        return [self._bot]


class ChatLayout(Layout):
    """The base model's own chat template, the facts one a line in the system message."""

    name = "chat"

    def __init__(self, folder_or_tokenizer: Path | str, *, max_tokens: int, template: str | None = None) -> None:
        super().__init__(folder_or_tokenizer, max_tokens=max_tokens)
        if template is None:
            if isinstance(folder_or_tokenizer, str):
                raise LayoutError("layout chat: no chat template given")
            template = _read_template(folder_or_tokenizer)
        self._template = template
        marks = _Marks.of(template)
        self._system_open = self._markup_ids(marks.system_open)
        self._system_close = self._markup_ids(marks.system_close)
        self._open = {Role.USER: self._markup_ids(marks.user_open), Role.BOT: self._markup_ids(marks.bot_open)}
        self._close = {Role.USER: self._markup_ids(marks.user_close), Role.BOT: self._markup_ids(marks.bot_close)}
        self._special = frozenset(
            int(i) for i, token in self._markup.get_added_tokens_decoder().items() if token.special
        )
        if not self._close[Role.BOT] or self._close[Role.BOT][0] not in self._special:
            raise LayoutError("layout chat: the template does not end a bot turn with a special token, so replies could not stop")

    def _markup_ids(self, text: str) -> list[int]:
        ids: list[int] = self._markup.encode(text, add_special_tokens=False).ids
        return ids

    @property
    def stop_ids(self) -> frozenset[int]:
        return frozenset({self._close[Role.BOT][0]})

    @property
    def banned_ids(self) -> frozenset[int]:
        return self._special - self.stop_ids

    @property
    def pad_id(self) -> int:
        return self._close[Role.BOT][0]

    def prefix(self, facts: Sequence[str]) -> list[int]:
        return [*self._system_open, *self.encode("\n".join(facts)), *self._system_close]

    def block(self, role: Role, text: str) -> Block:
        ids, opening, closing = self.encode(text), self._open[role], self._close[role]
        rest = [Part.CONTEXT] * (len(closing) - 1)
        parts = [*[Part.CONTEXT] * len(opening), *[Part.TEXT] * len(ids), *([Part.STOP, *rest] if closing else [])]
        return Block([*opening, *ids, *closing], parts)

    def reply_header(self) -> list[int]:
        return list(self._open[Role.BOT])

    def write(self, folder: Path) -> None:
        super().write(folder)
        (folder / TEMPLATE_FILE).write_text(self._template, encoding="utf-8")


@dataclass(frozen=True, slots=True)
class _Marks:
    """The strings a chat template puts around each message, found by rendering it around stand-ins."""

    system_open: str
    system_close: str
    user_open: str
    user_close: str
    bot_open: str
    bot_close: str

    @classmethod
    def of(cls, template: str) -> _Marks:
        def pieces(*roles: str, prompt: bool = False) -> list[str]:
            messages = [{"role": role, "content": _STAND_IN} for role in roles]
            return _render(template, messages, prompt=prompt).split(_STAND_IN)

        user_close = pieces("system", "user")[-1]
        bot_open = pieces("system", "user", prompt=True)[-1].removeprefix(user_close)
        bot_close = pieces("system", "user", "assistant")[-1]
        opening, after_system, after_user, after_bot, _ = pieces("system", "user", "assistant", "user")
        user_open = after_bot.removeprefix(bot_close)
        if user_close + bot_open != after_user or not after_system.endswith(user_open):
            raise LayoutError("layout chat: this chat template does not render turn by turn; use the layout persona instead")
        return cls(opening, after_system.removesuffix(user_open), user_open, user_close, bot_open, bot_close)


# A private-use character: no template contains it, and none treats it as white space.
_STAND_IN = "\ue000"


def _render(template: str, messages: list[dict[str, str]], *, prompt: bool) -> str:
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    try:
        return environment.from_string(template).render(
            messages=messages, add_generation_prompt=prompt, bos_token="", eos_token=""
        )
    except TemplateError as error:
        raise LayoutError(f"layout chat: the chat template cannot render a system, user and assistant message: {error}") from error


def _read_template(folder: Path) -> str:
    path = folder / TEMPLATE_FILE
    if path.is_file():
        return path.read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    template = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
    if not isinstance(template, str):
        raise LayoutError(f"{folder}: no chat template ({TEMPLATE_FILE}); use the layout persona, or an instruct model")
    return template


def merged(turns: Sequence[Turn]) -> Iterable[tuple[Role, str]]:
    """Join each speaker's messages in a row with newlines; where several people talk, put their names first."""
    people = {turn.author_id or turn.name for turn in turns if turn.role is Role.USER}
    for (role, _), group in itertools.groupby(turns, key=lambda t: (t.role, t.author_id if t.role is Role.USER else "")):
        same = list(group)
        text = "\n".join(turn.text.strip() for turn in same)
        name = " ".join(same[0].name.split())[:MAX_NAME_CHARS].rstrip(": ")
        yield role, f"{name}: {text}" if role is Role.USER and len(people) > 1 and name else text


def first_kept(lengths: Sequence[int], budget: int, *, kept_share: float = KEPT_SHARE) -> int:
    """Return the index of the first block to keep so that the kept ones fit `budget`; the last is always kept.

    Blocks are counted as they came. On overflow the oldest go until `kept_share` of the budget is left, so the
    answer stays the same for several turns, and with it the beginning of the prompt.
    """
    start = total = 0
    for index, length in enumerate(lengths):
        total += length
        if total > budget:
            while start < index and total > budget * kept_share:
                total -= lengths[start]
                start += 1
    return start


def _num_turns_before(turns: Sequence[Turn], num_blocks: int) -> int:
    """Count the turns in the first `num_blocks` merged blocks."""
    groups = itertools.groupby(turns, key=lambda t: (t.role, t.author_id if t.role is Role.USER else ""))
    return sum(len(list(group)) for _, group in itertools.islice(groups, num_blocks))


LAYOUTS: dict[str, type[Layout]] = {layout.name: layout for layout in (PersonaLayout, ChatLayout)}


def load_layout(folder: Path) -> Layout:
    """Read the layout stored in a checkpoint; refuse a name or version this program does not know."""
    path = folder / LAYOUT_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        name, version, max_tokens = data["name"], data["version"], int(data["max_tokens"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LayoutError(f"{path}: expected a JSON object with name, version and max_tokens ({error})") from error
    layout = LAYOUTS.get(name)
    if layout is None or version != layout.version:
        known = ", ".join(f"{entry.name} version {entry.version}" for entry in LAYOUTS.values())
        raise LayoutError(f"{path}: layout {name!r} version {version} is not known here (known: {known}). Update personabot.")
    return layout(folder, max_tokens=max_tokens)


def layout_for_hf_folder(folder: Path, *, max_tokens: int) -> Layout:
    """Choose the layout of a plain Hugging Face folder: our tokens, else a chat template, else refuse."""
    try:
        return PersonaLayout(folder, max_tokens=max_tokens)
    except LayoutError:
        pass
    return ChatLayout(folder, max_tokens=max_tokens)

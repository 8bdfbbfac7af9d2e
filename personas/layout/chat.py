"""The layout `chat`: an instruct base's own chat template, the facts as its system message."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from personas.conversation import Role
from personas.errors import LayoutError
from personas.layout.base import Layout
from personas.layout.shapes import Block, Part

TEMPLATE_FILE = "chat_template.jinja"


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
            raise LayoutError(
                "layout chat: the template does not end a bot turn with a special token, so replies could not stop"
            )

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
            raise LayoutError(
                "layout chat: this chat template does not render turn by turn; use the layout persona instead"
            )
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
        raise LayoutError(
            f"layout chat: the chat template cannot render a system, user and assistant message: {error}"
        ) from error


def _read_template(folder: Path) -> str:
    path = folder / TEMPLATE_FILE
    if path.is_file():
        return path.read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    template = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
    if not isinstance(template, str):
        raise LayoutError(f"{folder}: no chat template ({TEMPLATE_FILE}); use the layout persona, or an instruct model")
    return template

"""The page docs/settings.md, made from the settings themselves.

python -m personabot.settings_docs > docs/settings.md
"""

from __future__ import annotations

import sys
from typing import Any, get_args

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from personas.persona import GenerationSettings
from personas.settings import CUSTOMARY, ENVIRONMENT_ONLY, PREFIX, SECTIONS, Settings

INTRODUCTION = """\
# Settings

<!-- Made by `python -m personabot.settings_docs > docs/settings.md`; a test compares them. -->

Flags win over the environment, the environment over `personabot.toml` in the working directory
(`PERSONABOT_CONFIG` or `--config` names another).
An unknown key is an error in both. An empty variable counts as unset.

```toml
# personabot.toml
model = "models/starter"
default_persona = "Ada"

[generation]
temperature = 0.8
```

| in `personabot.toml` | in the environment | default | what it does |
|---|---|---|---|
"""


def table() -> str:
    """Return the whole page."""
    customary = {field: name for name, field in CUSTOMARY.items()}
    rows = []
    for name, field in Settings.model_fields.items():
        if name in SECTIONS:
            continue
        variable = customary.get(name, PREFIX + name.upper())
        rows.append(_row(name, variable, _default(field), field.description or ""))
    for name, field in GenerationSettings.model_fields.items():
        variable = f"{PREFIX}GENERATION__{name.upper()}"
        rows.append(_row(f"generation.{name}", variable, "the model's", _meaning(field)))
    for section in (name for name in SECTIONS if name != "generation"):
        for name, field in SECTIONS[section].model_fields.items():
            variable = f"{PREFIX}{section.upper()}__{name.upper()}"
            rows.append(_row(f"{section}.{name}", variable, _default(field), field.description or ""))
    for variable, meaning in ENVIRONMENT_ONLY.items():
        rows.append(_row("", variable, "", meaning))
    return INTRODUCTION + "\n".join(rows) + "\n"


def _row(name: str, variable: str, default: str, meaning: str) -> str:
    return f"| {f'`{name}`' if name else '-'} | `{variable}` | {default} | {meaning} |"


def _default(field: FieldInfo) -> str:
    value: Any = field.default
    if value is PydanticUndefined or value is None or value == "":
        return "-"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _meaning(field: FieldInfo) -> str:
    kinds = [kind.__name__ for kind in get_args(field.annotation) if kind is not type(None)]
    return field.description or f"{' or '.join(kinds)}; over the checkpoint's, under the persona's"


if __name__ == "__main__":
    sys.stdout.write(table())

"""What an operator may set, and where each value may stand: flags, environment, `personabot.toml`.

Owns names, types and defaults. An unknown key is an error wherever it stands; secrets never show in a repr or a log.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from pathlib import Path
from typing import Any, Literal

from platformdirs import user_data_path
from pydantic import BaseModel, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from personas.errors import SettingsError
from personas.limits import DataLimits, GateLimits
from personas.persona import GenerationSettings

PREFIX = "PERSONABOT_"
CONFIG_FILE = "personabot.toml"
# The names that hosting panels and other bots use already; PERSONABOT_… of the same setting wins over them.
CUSTOMARY = {"DISCORD_TOKEN": "discord_token", "TELEGRAM_TOKEN": "telegram_token", "REDIS_URL": "redis_url"}
# Read elsewhere, because they say where settings or shared files are rather than being settings.
ENVIRONMENT_ONLY = {
    "PERSONABOT_CONFIG": "the settings file to read instead of `./personabot.toml`",
    "PERSONABOT_BASES_DIR": "where converted base models are kept (shared by all data folders)",
}
# Settings that are tables of their own, as [generation] is.
SECTIONS: dict[str, type[BaseModel]] = {
    "generation": GenerationSettings,
    "gate": GateLimits,
    "training_data": DataLimits,
}


class Settings(BaseSettings):
    """The resolved settings of one process."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        protected_namespaces=(),
    )

    data_dir: Path = Field(
        default_factory=lambda: user_data_path("personabot"),
        description="conversations, logs and checkpoints (default: your system's user data folder)",
    )
    redis_url: str | None = Field(
        None, repr=False, description="a Redis or Valkey to use; none: the embedded server is started"
    )
    model: str = Field(
        "", description="registered name, checkpoint folder, Hugging Face folder or hub id; empty: the shipped default"
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["auto", "float32", "float16", "bfloat16", "int8"] = Field(
        "auto", description="auto, float32, float16, bfloat16 or int8 (CPU)"
    )
    engine: Literal["personabot", "vllm"] = Field(
        "personabot", description="what computes replies: personabot (its own engine), or vllm where that is installed"
    )
    cuda_graphs: bool = Field(
        False, description="on a GPU: record a step's operations once and replay them; new, and not tried on one yet"
    )
    personas_dir: Path | None = Field(None, description="a folder with your own persona files beside the catalogue")
    default_persona: str = Field("", description="who speaks where nobody was chosen; empty: the catalogue's first")
    discord_token: SecretStr | None = Field(None, description="the token of your Discord bot")
    telegram_token: SecretStr | None = Field(None, description="the token of your Telegram bot")
    discord_api: str = Field(
        "https://discord.com/api", pattern=r"^https?://", description="base URL of Discord's REST API"
    )
    telegram_api: str = Field(
        "https://api.telegram.org",
        pattern=r"^https?://",
        description="base URL of the Bot API, or of your own server",
    )
    num_threads: int = Field(
        0,
        ge=0,
        description="CPU threads that compute replies; 0: one for each core, fewer while others keep the cores busy",
    )
    max_num_seqs: int = Field(16, ge=1, le=1024, description="how many replies are generated side by side")
    reply_deadline_s: float = Field(
        120.0, gt=0, description="seconds after which a waiting message is answered with a notice instead"
    )
    metrics_port: int = Field(
        0, ge=0, le=65535, description="port on which a worker shows its metrics to Prometheus; 0: none"
    )
    lease_s: float = Field(
        12.0, ge=0.5, description="seconds after which a worker that shows no sign of life loses its conversations"
    )
    admins: str = Field(
        "",
        pattern=r"^\s*((discord|telegram):-?\d+\s*(,\s*|$))*$",
        description="who may retrain and switch models from a chat: `discord:ID` and `telegram:ID`, between commas",
    )
    max_upload_mb: int = Field(100, ge=1, description="largest training file that is taken from a chat, in MB")
    training_threads: int = Field(0, ge=0, description="CPU threads that train; 0: half of the cores")
    training_niceness: int = Field(10, ge=0, le=19, description="how far a training stands back for others; 0: not")
    training_memory_gb: float = Field(
        0.0, ge=0, description="memory a training may use; 0: four fifths of what is free"
    )
    training_gpu_share: float = Field(
        0.0, ge=0, le=1, description="share of the GPU's memory a training may take; 0: four fifths of what is free"
    )
    training_hours: float = Field(24.0, gt=0, description="computing time a training may take, in hours")
    training_free_disk_gb: float = Field(1.0, ge=0, description="disk space that a training must leave free, in GB")
    training_track: str = Field(
        "",
        pattern=r"^\s*((tensorboard|comet|wandb)\s*(,\s*|$))*$",
        description="where a training's curves go besides the chat: tensorboard, comet, wandb, between commas",
    )
    model_memory_gb: float = Field(
        0.0, ge=0, description="memory that loaded models may take together; 0: half of what is free at the start"
    )
    checkpoint_remote: str = Field(
        "", repr=False, description="an fsspec URL whose current checkpoints this machine's worker follows"
    )
    gate: GateLimits = Field(GateLimits(), description="what a retrained model has to keep to")
    training_data: DataLimits = Field(DataLimits(), description="what retraining data have to keep to")
    generation: GenerationSettings = Field(
        GenerationSettings(),
        description="sampling defaults over those of the checkpoint, e.g. `generation.top_p`",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="debug, info, warning, error")
    log_json: bool = Field(False, description="log lines as JSON, for log collectors")

    @property
    def discord_root(self) -> str:
        """The versioned REST root, whether or not `discord_api` names the version."""
        url = self.discord_api.rstrip("/")
        return url if re.search(r"/v\d+$", url) else f"{url}/v10"

    @property
    def telegram_root(self) -> str:
        """What precedes the token in a Bot API URL."""
        return self.telegram_api.rstrip("/").removesuffix("/bot") + "/bot"

    @property
    def admin_ids(self) -> frozenset[str]:
        """The administrators, each as "platform:id"."""
        return frozenset(word.strip() for word in self.admins.split(",") if word.strip())

    @property
    def trackers(self) -> tuple[str, ...]:
        """The trackers of a retraining's curves."""
        return tuple(word.strip() for word in self.training_track.split(",") if word.strip())

    def shown(self) -> dict[str, Any]:
        """Return the settings as they may be logged: secrets are only said to be set."""
        data = self.model_dump(mode="json", exclude_none=True)
        for name in ("discord_token", "telegram_token"):
            if name in data:
                data[name] = "(set)"
        for name in ("redis_url", "checkpoint_remote"):
            if name in data:
                data[name] = re.sub(r"//[^@/]*@", "//***@", data[name])
        return data

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        customary = {field: os.environ[name] for name, field in CUSTOMARY.items() if os.environ.get(name)}
        return (
            init_settings,
            env_settings,
            InitSettingsSource(settings_cls, init_kwargs=customary),
            InitSettingsSource(settings_cls, init_kwargs=_read_file()),
        )


def load_settings(**flags: Any) -> Settings:
    """Resolve the settings; flags that are None were not given. Raises `SettingsError` naming every problem."""
    given = {name: value for name, value in flags.items() if value is not None}
    problems = _unknown_in_environment()
    try:
        settings = Settings(**given)
    except ValidationError as error:
        problems += [_problem(dict(entry), given) for entry in error.errors(include_input=False, include_url=False)]
    if problems:
        raise SettingsError("\n".join(problems))
    return settings


def load_generation(**flags: Any) -> GenerationSettings:
    """Check the sampling flags of one command; raises `SettingsError` naming every bad one."""
    try:
        return GenerationSettings(**flags)
    except ValidationError as error:
        entries = error.errors(include_input=False, include_url=False)
        raise SettingsError("\n".join(_problem(dict(entry), flags) for entry in entries)) from None


def config_file() -> Path:
    """Return the settings file of this process, which need not exist unless PERSONABOT_CONFIG names it."""
    return Path(os.environ.get("PERSONABOT_CONFIG") or CONFIG_FILE)


def _read_file() -> dict[str, Any]:
    path = config_file()
    if not path.exists():
        if os.environ.get("PERSONABOT_CONFIG"):
            raise SettingsError(f"PERSONABOT_CONFIG: there is no file {path}. Create it, or unset the variable.")
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise SettingsError(f"{path}: not readable as TOML: {error}") from None


def _unknown_in_environment() -> list[str]:
    known = {PREFIX + name.upper() for name in Settings.model_fields} | set(ENVIRONMENT_ONLY)
    nested = tuple(f"{PREFIX}{section.upper()}__" for section in SECTIONS)
    return [
        f"environment: {name} is not a setting{_closest(name, known)}"
        for name in sorted(os.environ)
        if name.startswith(PREFIX) and name not in known and not name.startswith(nested)
    ]


def _problem(entry: dict[str, Any], flags: dict[str, Any]) -> str:
    """Say where the offending value stands, what was expected, and for an unknown key the closest valid name."""
    path = [str(part).lower() for part in entry["loc"]]
    place, key = _place_of(path, flags)
    if entry["type"] == "extra_forbidden":
        siblings = SECTIONS[path[0]].model_fields if path[0] in SECTIONS and path[1:] else Settings.model_fields
        return f"{place}: {key} is not a setting{_closest(path[-1], set(siblings))}"
    message = entry["msg"].removeprefix("Value error, ")
    return f"{place}: {key}: {message[0].lower()}{message[1:]}"


def _place_of(path: list[str], flags: dict[str, Any]) -> tuple[str, str]:
    name = PREFIX + "__".join(path).upper()
    if path[0] in flags:
        return "command line", "--" + path[-1].replace("_", "-")
    if os.environ.get(name) or os.environ.get(PREFIX + path[0].upper()):
        return "environment", name
    for customary, field in CUSTOMARY.items():
        if field == path[0] and os.environ.get(customary):
            return "environment", customary
    return str(config_file()), ".".join(path)


def _closest(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else " (see docs/settings.md)"

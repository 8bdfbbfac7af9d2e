"""The command line: names, flags and how errors are shown. Every command imports its room only when it runs."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.main import get_command

from personas.errors import PersonabotError, SettingsError

app = typer.Typer(
    name="personabot",
    help="A self-hosted chatbot that speaks as a character, in the terminal, on Discord and on Telegram.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
bot_app = typer.Typer(help="Run one adapter.", no_args_is_help=True)
app.add_typer(bot_app, name="bot")
bench_app = typer.Typer(help="Measure speed.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")

# Arguments go on as they are to a command that is imported only when called, its own --help included.
PASSED_ON: dict[str, Any] = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
# Which extra brings a module that a command may lack.
EXTRAS = {
    "torch": "worker",
    "transformers": "worker",
    "tokenizers": "worker",
    "safetensors": "worker",
    "jinja2": "worker",
    "peft": "worker",
    "prometheus_client": "worker",
    "gguf": "worker",
    "fsspec": "worker",
    "numpy": "train",
    "matplotlib": "train",
    "discord": "discord",
    "telegram": "telegram",
}

ModelPath = Annotated[
    str | None,
    typer.Option("--model-path", help="Checkpoint folder, Hugging Face folder or hub id.", show_default=False),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.", show_default=False)]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, float16, bfloat16 or int8.", show_default=False)]
Engine = Annotated[str | None, typer.Option(help="personabot or vllm: what computes replies.", show_default=False)]


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    data_dir: Annotated[Path | None, typer.Option(help="Where conversations and logs are kept.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings file instead of ./personabot.toml.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    is_version_wanted: Annotated[bool, typer.Option("--version", help="Show the version and leave.")] = False,
) -> None:
    """A self-hosted chatbot that speaks as a character, in the terminal, on Discord and on Telegram."""
    if is_version_wanted:
        from importlib.metadata import version

        typer.echo(f"personabot {version('personabot')}")
        raise typer.Exit
    if config:
        os.environ["PERSONABOT_CONFIG"] = str(config)
    # Into the environment, so that the processes that `up` starts see the same.
    if data_dir:
        os.environ["PERSONABOT_DATA_DIR"] = str(data_dir.absolute())
    if log_level:
        os.environ["PERSONABOT_LOG_LEVEL"] = log_level
    from personas.logs import keep_output_clean

    keep_output_clean(os.environ.get("PERSONABOT_LOG_LEVEL", ""))  # until a service configures its own logging


@app.command()
def up(model_path: ModelPath = None, device: Device = None, dtype: Dtype = None, engine: Engine = None) -> None:
    """Start everything on this machine: queue, worker, and an adapter for every token; without one, a chat here."""
    from personabot.up import run_everything
    from personas.settings import load_settings

    run_everything(load_settings(model=model_path, device=device, dtype=dtype, engine=engine))


@app.command(context_settings=PASSED_ON)
def chat(context: typer.Context) -> None:
    """Talk to a persona in the terminal, through a pipe, or from a file of prompts."""
    _pass_on(context, "personabot.chat_cli", "chat")


@bot_app.command("discord")
def bot_discord() -> None:
    """Speak on Discord; needs DISCORD_TOKEN."""
    _run_bot("discord")


@bot_app.command("telegram")
def bot_telegram() -> None:
    """Speak on Telegram; needs TELEGRAM_TOKEN."""
    _run_bot("telegram")


def _run_bot(platform: str) -> None:
    from personas.logs import configure_logging
    from personas.settings import load_settings

    settings = load_settings()
    configure_logging(settings, platform)
    importlib.import_module(f"bots.{platform}.app").run(settings)


@app.command()
def worker(
    model_path: ModelPath = None,
    device: Device = None,
    dtype: Dtype = None,
    engine: Engine = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="How many replies are generated side by side.")] = None,
    queues: Annotated[str, typer.Option(help="chat, or training: one worker serves one of them.")] = "chat",
) -> None:
    """Run one worker: the process that owns the model and answers what is in the queue, or trains new ones."""
    from personas.settings import load_settings

    modules = {"chat": "worker.process", "training": "trainer.retraining.training_worker"}
    if queues not in modules:
        raise typer.BadParameter(f"{queues!r}: expected chat or training", param_hint="--queues")
    settings = load_settings(model=model_path, device=device, dtype=dtype, engine=engine, max_num_seqs=max_num_seqs)
    importlib.import_module(modules[queues]).run(settings)


@app.command(context_settings=PASSED_ON)
def train(context: typer.Context) -> None:
    """Train or fine-tune a model on dialogue (see `personabot train --help`)."""
    _pass_on(context, "trainer.cli", "train")


@app.command(context_settings=PASSED_ON, hidden=True)
def retraining(context: typer.Context) -> None:
    """One step of a training job; the training worker runs these in processes of their own."""
    _pass_on(context, "trainer.retraining.steps", "app")


@app.command(context_settings=PASSED_ON)
def inspect(context: typer.Context) -> None:
    """Say what a data file holds and what would be trained on it (see `personabot inspect --help`)."""
    _pass_on(context, "trainer.inspect_cli", "inspect")


@app.command(context_settings=PASSED_ON)
def evaluate(context: typer.Context) -> None:
    """Measure a checkpoint on held-out dialogue, or probe its personas (see `personabot evaluate --help`)."""
    _pass_on(context, "trainer.evaluate_cli", "evaluate")


@app.command(context_settings=PASSED_ON)
def report(context: typer.Context) -> None:
    """Show runs and checkpoints side by side: a page, curves, a table (see `personabot report --help`)."""
    _pass_on(context, "trainer.evaluate_cli", "report")


@app.command(context_settings=PASSED_ON)
def sweep(context: typer.Context) -> None:
    """Answer prompts under many sampling settings, to read side by side (see `personabot sweep --help`)."""
    _pass_on(context, "trainer.sweep_cli", "sweep")


@app.command(context_settings=PASSED_ON)
def publish(context: typer.Context) -> None:
    """Put a checkpoint with its model card on the Hugging Face hub (see `personabot publish --help`)."""
    _pass_on(context, "trainer.evaluate_cli", "publish")


@app.command(context_settings=PASSED_ON)
def personas(context: typer.Context) -> None:
    """List, show and check personas (see `personabot personas --help`)."""
    _pass_on(context, "personabot.personas_cli", "app")


@app.command(context_settings=PASSED_ON)
def checkpoints(context: typer.Context) -> None:
    """List, promote and roll back trained models (see `personabot checkpoints --help`)."""
    _pass_on(context, "personabot.checkpoints_cli", "app")


@app.command()
def doctor(
    only: Annotated[list[str] | None, typer.Option(help="Check this alone; may be given several times.")] = None,
) -> None:
    """Say what is missing or misconfigured, and how to mend it; exit status 1 if anything is."""
    from personabot.doctor import CHECKS, HEALTH, examine

    known = [*CHECKS, *HEALTH]
    if unknown := [name for name in only or [] if name not in known]:
        raise typer.BadParameter(f"{unknown[0]}: expected one of {', '.join(known)}", param_hint="--only")
    raise typer.Exit(examine(only or ()))


@bench_app.command("engine", context_settings=PASSED_ON)
def bench_engine(context: typer.Context) -> None:
    """Our engine against transformers' generate, same requests."""
    _run_benchmark(context)


@bench_app.command("pipeline", context_settings=PASSED_ON)
def bench_pipeline(context: typer.Context) -> None:
    """The whole way through Redis, Celery and outbox against the engine alone."""
    _run_benchmark(context)


@bench_app.command("train", context_settings=PASSED_ON)
def bench_train(context: typer.Context) -> None:
    """Our trainer against transformers' Trainer and the ancestors' way, same data."""
    _run_benchmark(context)


def _run_benchmark(context: typer.Context) -> None:
    import subprocess

    root = Path(__file__).parent.parent
    if not (root / "benchmarks").is_dir():
        raise SettingsError("benchmarks/ comes with a clone of the repository, not with the installed package.")
    command = [sys.executable, "-m", f"benchmarks.{context.info_name}", *context.args]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(root)}, check=False)
    raise typer.Exit(done.returncode)


def _pass_on(context: typer.Context, module: str, name: str) -> None:
    """Run a Typer app, or a function as one command, with the arguments that are left."""
    target = getattr(importlib.import_module(module), name)
    if not isinstance(target, typer.Typer):
        single = typer.Typer(pretty_exceptions_enable=False)
        # Let people write --top_p, as transformers spells it, for --top-p.
        dashed: dict[str, Any] = {"token_normalize_func": lambda option: option.replace("_", "-")}
        single.command(context_settings={"help_option_names": ["-h", "--help"], **dashed})(target)
        target = single
    get_command(target).main(args=list(context.args), prog_name=context.command_path)


def main() -> None:
    """Run the command line; a mistake of the user's ends in one message, never in a traceback."""
    try:
        app(prog_name="personabot")
    except PersonabotError as error:
        _complain(str(error))
        sys.exit(error.exit_status)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            _crash(error)
        _complain(f"This needs the package {package}. Install it: pip install 'personabot[{EXTRAS[package]}]'")
        sys.exit(1)
    except Exception as error:  # the one place where a command's unexpected errors end
        _crash(error)


def _complain(message: str) -> None:
    Console(stderr=True, soft_wrap=True).print(Text(message, style="red"))


def _crash(error: Exception) -> None:
    """Keep the traceback in a file, and say where."""
    from platformdirs import user_data_path

    folder = Path(os.environ.get("PERSONABOT_DATA_DIR") or user_data_path("personabot")) / "logs"
    path = folder / f"crash-{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}.txt"
    trace = "".join(traceback.format_exception(error))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(trace, encoding="utf-8")
        hint = f"The details are in {path}."
    except OSError:
        hint = f"The details could not be written to {path}:\n{trace}"
    _complain(f"Something went wrong inside personabot: {type(error).__name__}: {error}. {hint}")
    sys.exit(1)

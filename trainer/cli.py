"""`personabot train`: the flags over the configuration. Trains nothing itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console


def train(
    files: Annotated[list[Path] | None, typer.Argument(help="Data files; or name them in --config.")] = None,
    data: Annotated[list[Path] | None, typer.Option(help="The same, as an option.")] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file; flags win over it.")] = None,
    format: Annotated[str | None, typer.Option(help="The files' format, where it is not recognised.")] = None,
    speaker: Annotated[
        str | None, typer.Option("--speaker", "--me", help="Whose lines the bot learns, where people have names.")
    ] = None,
    both_sides: Annotated[
        bool | None,
        typer.Option(
            "--both-sides/--one-side",
            help="Also learn the other speaker's turns; else where that one has facts, or nobody has any.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The run's folder, in which an interrupted run goes on; else runs/NAME, by --name, the first data "
            "file or the configuration.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name, for its card.", show_default=False)] = None,
    base: Annotated[
        str | None, typer.Option(help="Base model or checkpoint: name, folder or hub id; none: from scratch.")
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="persona, chat (instruct bases), convai, dialogpt or corpus.")
    ] = None,
    lora: Annotated[int | None, typer.Option(help="Train a LoRA adapter of this rank instead of all weights.")] = None,
    valid: Annotated[list[Path] | None, typer.Option(help="Held-out dialogue to look at on the way.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Length of the run, in passes over the data.")] = None,
    train_tokens: Annotated[int | None, typer.Option(help="Length of the run, in processed tokens.")] = None,
    batch_tokens: Annotated[int | None, typer.Option(help="Processed tokens of an optimizer step.")] = None,
    micro_tokens: Annotated[
        int | None, typer.Option(help="Padded tokens of a forward pass; less needs less memory.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="The longest sequence, in tokens.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The highest learning rate.")] = None,
    max_norm: Annotated[float | None, typer.Option(help="Gradients are scaled down to this norm.")] = None,
    num_candidates: Annotated[
        int | None, typer.Option(help="Above 1: also learn which of so many replies is the right one.")
    ] = None,
    lm_coef: Annotated[float | None, typer.Option(help="Weight of the language-model loss.")] = None,
    mc_coef: Annotated[float | None, typer.Option(help="Weight of the next-utterance loss.")] = None,
    max_history: Annotated[
        int | None, typer.Option(help="An example a reply, behind 2n + 1 turns; else all turns in one.")
    ] = None,
    shuffle_facts: Annotated[bool, typer.Option(help="Another order of the facts each time.")] = False,
    replay: Annotated[
        float | None, typer.Option(help="Of a checkpoint as --base: the share of its own data mixed in (0.2).")
    ] = None,
    loss_on: Annotated[str | None, typer.Option(help="bot, or both speakers' turns.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bf16 or fp16 (by autocast), or fp32.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    valid_steps: Annotated[int | None, typer.Option(help="Look at held-out data every so many steps.")] = None,
    valid_first: Annotated[bool | None, typer.Option(help="Look at it before the first step too.")] = None,
    valid_micro_tokens: Annotated[int | None, typer.Option(help="Padded tokens of a pass over held-out data.")] = None,
    patience: Annotated[int | None, typer.Option(help="Stop after so many looks without a lower loss.")] = None,
    gradient_checkpointing: Annotated[
        bool | None, typer.Option(help="Compute activations twice to hold fewer of them.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Order of the data, initial weights, dropout.")] = None,
    set: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Any other key of the configuration file, such as weight_decay=0.1."),
    ] = None,
    push_to_hub: Annotated[
        str | None, typer.Option(help="Put the checkpoint on the Hugging Face hub as OWNER/NAME, private.")
    ] = None,
) -> None:
    """Train a model from scratch, fine-tune a base in full, or train a LoRA adapter on it.

    Every option of the configuration file is described in docs/training.md; --set optimizer=muon --set lora.rank=8 sets
    those that have no flag. Ctrl-C saves; the same command goes on.
    """
    from trainer.config import ConfigError, laid_over, load_config, setting
    from trainer.continuing import settled, with_replay
    from trainer.train import Run

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    reading = {
        key: value
        for key, value in {
            "format": format,
            "speaker": speaker,
            "both_sides": both_sides,
            "shuffle_facts": shuffle_facts or None,
        }.items()
        if value is not None
    }
    paths = [*(files or ()), *(data or ())]
    if config and (idle := idle_flags(reading, has_data=bool(paths), has_valid=bool(valid))):
        raise ConfigError(
            f"{', '.join(idle)}: for files on the command line, and none is named; in {config} it stands in [[data]]."
        )
    flags: dict[str, Any] = {
        "name": name or (None if config else out.resolve().name if out else named(paths[0]) if paths else None),
        "base": base,
        "layout": layout,
        "lora": {"rank": lora, "alpha": lora} if lora else None,
        "data": [{"path": path, **reading} for path in paths] or None,
        "valid": [{"path": path, **reading, "both_sides": False, "shuffle_facts": False} for path in valid or ()]
        or None,
        "epochs": epochs,
        "train_tokens": train_tokens,
        "batch_tokens": batch_tokens,
        "micro_tokens": micro_tokens,
        "max_tokens": max_tokens,
        "learning_rate": learning_rate,
        "max_norm": max_norm,
        "num_candidates": num_candidates,
        "lm_coef": lm_coef,
        "mc_coef": mc_coef,
        "max_history": max_history,
        "replay": replay,
        "loss_on": loss_on,
        "dtype": dtype,
        "device": device,
        "valid_steps": valid_steps,
        "valid_first": valid_first,
        "valid_micro_tokens": valid_micro_tokens,
        "patience": patience,
        "gradient_checkpointing": gradient_checkpointing,
        "seed": seed,
    }
    given = {key: value for key, value in flags.items() if value is not None}
    for text in set or ():
        given = laid_over(given, setting(text))
    if config and paths:
        given.setdefault("valid", [])
        if said := instead(config, has_valid=bool(given["valid"])):
            console.print(said)
    settings = with_replay(load_config(config, given if config else settled(given)))
    run = Run.prepare(settings, out or Path("runs", name or (named(paths[0]) if paths else settings.name)))
    folder = run.train()
    if not run.ranks.is_first:
        return
    console.print(f"Checkpoint: {folder}\nTry it: personabot chat --model-path {folder}")
    if push_to_hub:
        from trainer.hub import push

        console.print(push(folder, push_to_hub))


def idle_flags(reading: dict[str, Any], *, has_data: bool, has_valid: bool) -> list[str]:
    """Return the flags about reading that concern no file; held-out files are always told from one side, in order.

    >>> idle_flags({"format": "csv", "both_sides": False}, has_data=False, has_valid=True)
    ['--one-side']
    """
    concerned = {"format", "speaker"} if has_valid else set()
    flags = {"both_sides": "--both-sides" if reading.get("both_sides") else "--one-side"}
    idle = [] if has_data else [key for key in reading if key not in concerned]
    return [flags.get(key, f"--{key.replace('_', '-')}") for key in idle]


def instead(config: Path, *, has_valid: bool) -> str:
    """Say what becomes of a configuration's own data where other files are named; nothing where it has none."""
    from trainer.config import read_toml

    own = read_toml(config)
    said = ["your files replace its data"] if "data" in own else []
    if "valid" in own:
        left_out = "its held-out data is left out (--valid names yours)"
        said.append("your held-out data replaces its own" if has_valid else left_out)
    return f"{config}: {', and '.join(said)}." if said else ""


def named(path: Path) -> str:
    """Return the name of a data file or folder without its endings.

    >>> named(Path("talk/my_dialogues.jsonl.gz"))
    'my_dialogues'
    """
    # A link is called as it is, not as what it leads to.
    name = path.resolve().name if path.name in {"", ".."} else path.name
    return name.split(".")[0] or name

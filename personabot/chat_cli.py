"""`personabot chat`: its flags. What they start is in `chat_cmd`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from personabot import chat_cmd
from personabot.cli import Device, Dtype, Engine, ModelPath
from personas.presets import PRESETS
from personas.presets import preset as preset_named
from personas.settings import load_generation, load_settings


def chat(
    persona: Annotated[str | None, typer.Option(help="Who speaks; see `personabot personas list`.")] = None,
    model_path: ModelPath = None,
    prompt_file: Annotated[Path | None, typer.Option(help="Answer these prompts, one a line; - for stdin.")] = None,
    is_continued: Annotated[bool, typer.Option("--continue", help="The prompts are one conversation.")] = False,
    output_file: Annotated[Path | None, typer.Option(help="Write a transcript; JSON Lines if named .jsonl.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same replies.")] = None,
    preset: Annotated[
        str | None, typer.Option(help=f"A named way of speaking: {', '.join(PRESETS)}; other flags win over it.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Above 1 livelier, below 1 tamer.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample from the likeliest tokens of this total share.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample from this many tokens; 0 for all.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1 discourages repetition.")] = None,
    no_repeat_ngram_size: Annotated[int | None, typer.Option(help="Never repeat so many tokens in a row.")] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Leave out tokens less likely than this share of the likeliest.")
    ] = None,
    typical_p: Annotated[float | None, typer.Option(help="Sample from the most typical tokens of this share.")] = None,
    num_beams: Annotated[int | None, typer.Option(help="Search the likeliest reply with so many beams.")] = None,
    candidates: Annotated[int | None, typer.Option(help="Sample so many replies, and say the best.")] = None,
    bad_words: Annotated[str | None, typer.Option(help="Never say these, between commas or as JSON.")] = None,
    logit_bias: Annotated[
        str | None, typer.Option(help="Words to make likelier or rarer, such as 'please=2, well=-3'.")
    ] = None,
    stop_strings: Annotated[
        str | None, typer.Option(help="End the reply before these, between commas or as JSON.")
    ] = None,
    do_sample: Annotated[
        bool | None, typer.Option("--do-sample/--no-do-sample", help="Sample, or take the likeliest token.")
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="Prompt and reply together, in tokens.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="The longest reply, in tokens.")] = None,
    min_new_tokens: Annotated[int | None, typer.Option(help="The shortest reply, in tokens.")] = None,
    device: Device = None,
    dtype: Dtype = None,
    engine: Engine = None,
) -> None:
    """Talk to a persona in the terminal, through a pipe, or from a file of prompts."""
    sampling = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "repetition_penalty": repetition_penalty,
        "no_repeat_ngram_size": no_repeat_ngram_size,
        "min_p": min_p,
        "typical_p": typical_p,
        "num_beams": num_beams,
        "candidates": candidates,
        "bad_words": bad_words,
        "logit_bias": logit_bias,
        "stop_strings": stop_strings,
        "do_sample": do_sample,
        "max_length": max_length,
        "max_new_tokens": max_new_tokens,
        "min_new_tokens": min_new_tokens,
        "seed": seed,
    }
    if is_continued and prompt_file is None:
        raise typer.BadParameter("--continue needs --prompt-file")
    settings = load_settings(model=model_path, device=device, dtype=dtype, engine=engine)
    generation = load_generation(**sampling)
    if preset is not None:
        generation = generation.over(preset_named(preset))
    options = chat_cmd.ChatOptions(
        persona or "", prompt_file, output_file, is_continued, generation, is_model_named=bool(model_path)
    )
    chat_cmd.chat(settings, options)

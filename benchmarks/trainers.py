"""The contenders of `benchmarks.train`: our trainer, `transformers`' `Trainer`, and the ancestors' way.

The ancestors' way is transfer-learning-conv-ai's (commit d4c7607): a sequence for every reply with two candidates,
everything padded to the longest of the data set, the output head over every token of every candidate.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import (
    DataCollatorForSeq2Seq,
    GPT2Config,
    GPT2DoubleHeadsModel,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from personas.conversation import Role
from personas.layout import Layout, Part
from trainer.config import TrainConfig
from trainer.formats import Dialogue
from trainer.train import Run

IGNORED = -100
LEARNING_RATE = 1e-3
LIBRARY_BATCH = 8
# The defaults of the ancestors' train.py; their history is twice max_history plus one turns.
ANCESTORS_BATCH, ANCESTORS_STEPS, ANCESTORS_CANDIDATES, ANCESTORS_TURNS = 4, 8, 2, 5


@dataclass(frozen=True, slots=True)
class Round:
    """What one contender did in one round, its first step left out; `num_tokens` without padding."""

    num_labels: int
    num_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Bench:
    """What the contenders share; `seconds` is how long a round of the others' takes."""

    dialogues: Sequence[Dialogue]
    config: TrainConfig
    layout: Layout
    shape: GPT2Config
    seconds: float
    dtype: torch.dtype
    device: torch.device


def ours(bench: Bench, number: int, *, num_candidates: int = 1) -> Round:
    """Train with `personabot train`'s own loop, and read its log."""
    config = bench.config.model_copy(update={"seed": number + 1, "num_candidates": num_candidates})
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        Run.prepare(config, Path(folder)).train()
        lines = [json.loads(line) for line in Path(folder, "log.jsonl").read_text(encoding="utf-8").splitlines()]
    counted = [now["tokens"] - before["tokens"] for before, now in pairwise(lines)]
    seconds = [num_tokens / line["tokens_per_s"] for num_tokens, line in zip(counted, lines[1:], strict=True)]
    num_labels = sum(took * line["labels_per_s"] for took, line in zip(seconds, lines[1:], strict=True))
    return Round(round(num_labels), sum(counted), sum(seconds))


def ours_with_both_losses(bench: Bench, number: int) -> Round:
    """Train with the next-utterance loss beside the language model's, over as many candidates as the ancestors."""
    return ours(bench, number, num_candidates=ANCESTORS_CANDIDATES)


class Clock(TrainerCallback):
    """Stops the `Trainer` after some seconds, the first step not counted."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.started, self.ended = seconds, 0.0, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.ended = time.perf_counter()
        self.started = self.started or self.ended
        control.should_training_stop = self.ended - self.started > self.seconds


class Counting:
    """A collator that remembers the labels and tokens of every batch that it padded."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate, self.counts = collate, list[tuple[int, int]]()

    def __call__(self, features: Any) -> Any:
        batch = self.collate(features)
        self.counts.append((int((batch["labels"][:, 1:] != IGNORED).sum()), int(batch["attention_mask"].sum())))
        return batch


def library(bench: Bench, number: int) -> Round:
    """Train with the `Trainer` on the same sequences and labels, each batch padded to its own longest."""
    sequences = [
        {
            "input_ids": example.ids,
            "labels": [
                token if part is not Part.CONTEXT else IGNORED
                for token, part in zip(example.ids, example.parts, strict=True)
            ],
        }
        for dialogue in bench.dialogues
        for example in bench.layout.examples_of(dialogue.facts, dialogue.turns, max_tokens=bench.config.max_tokens)
    ]
    clock = Clock(bench.seconds)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        bench.layout.write(Path(folder))
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(Path(folder, "tokenizer.json")), pad_token="<pad>")
        collate = Counting(DataCollatorForSeq2Seq(tokenizer))
        torch.manual_seed(number)
        trainer = Trainer(
            model=GPT2LMHeadModel(bench.shape),
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=LIBRARY_BATCH,
                num_train_epochs=1000,
                learning_rate=LEARNING_RATE,
                bf16=bench.dtype == torch.bfloat16,
                use_cpu=bench.device.type == "cpu",
                seed=number,
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                dataloader_pin_memory=False,
            ),
            train_dataset=sequences,
            data_collator=collate,
            callbacks=[clock],
        )
        trainer.train()
    # The loader prepares batches ahead of those that were trained on.
    counted = collate.counts[1 : trainer.state.global_step]
    return Round(sum(n for n, _ in counted), sum(n for _, n in counted), clock.ended - clock.started)


def ancestors(bench: Bench, number: int) -> Round:
    """Train as the ancestors do, except for the number format, which is everybody's."""
    torch.manual_seed(number)
    model = GPT2DoubleHeadsModel(bench.shape).to(bench.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    examples = list(replies(bench.dialogues, bench.layout, random.Random(number)))
    longest = max(len(ids) for example in examples for ids, _ in example)
    random.Random(number).shuffle(examples)
    endless, started, done = cycle(examples), time.perf_counter(), list[list[Candidates]]()
    while len(done) < 2 or time.perf_counter() - started < bench.seconds:
        batch = list(islice(endless, ANCESTORS_BATCH))
        (double_loss(model, batch, longest, bench) / ANCESTORS_STEPS).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        done.append(batch)
        if len(done) % ANCESTORS_STEPS == 0:
            optimizer.step()
            optimizer.zero_grad()
        if len(done) == 1:
            started = time.perf_counter()
    seconds = time.perf_counter() - started
    seen = [example for batch in done[1:] for example in batch]
    return Round(
        sum(len(example[-1][1]) for example in seen), sum(len(ids) for example in seen for ids, _ in example), seconds
    )


# Of one reply: (whole sequence, the reply's own ids) of each candidate, the true one last.
Candidates = list[tuple[list[int], list[int]]]


def replies(dialogues: Sequence[Dialogue], layout: Layout, rng: random.Random) -> Iterator[Candidates]:
    """Yield every bot turn with its candidates."""
    pool = [turn.text for dialogue in dialogues for turn in dialogue.turns if turn.role is Role.BOT]
    for dialogue in dialogues:
        for place, turn in enumerate(dialogue.turns):
            if turn.role is Role.BOT:
                turns = dialogue.turns[max(0, place - ANCESTORS_TURNS) : place]
                context = layout.prompt(dialogue.facts, turns, max_tokens=layout.max_tokens, reserve=64).ids
                texts = [*rng.sample(pool, ANCESTORS_CANDIDATES - 1), turn.text]
                yield [(context + layout.reply_ids(text), layout.reply_ids(text)) for text in texts]


def double_loss(model: GPT2DoubleHeadsModel, batch: Sequence[Candidates], longest: int, bench: Bench) -> torch.Tensor:
    """Return twice the language-model loss plus the multiple-choice loss, every row `longest` tokens long."""
    shape = (len(batch), ANCESTORS_CANDIDATES, longest)
    ids, labels = torch.full(shape, bench.layout.pad_id), torch.full(shape, IGNORED)
    last = torch.zeros(shape[:2], dtype=torch.long)
    for row, example in enumerate(batch):
        for column, (sequence, reply) in enumerate(example):
            ids[row, column, : len(sequence)] = torch.tensor(sequence)
            last[row, column] = len(sequence) - 1
            if column == ANCESTORS_CANDIDATES - 1:
                labels[row, column, len(sequence) - len(reply) : len(sequence)] = torch.tensor(reply)
    gold = torch.full((len(batch),), ANCESTORS_CANDIDATES - 1)
    device = bench.device
    with torch.autocast(device.type, dtype=bench.dtype, enabled=bench.dtype != torch.float32):
        output: Any = model(
            input_ids=ids.to(device), labels=labels.to(device), mc_token_ids=last.to(device), mc_labels=gold.to(device)
        )
    loss: torch.Tensor = 2.0 * output.loss + output.mc_loss
    return loss

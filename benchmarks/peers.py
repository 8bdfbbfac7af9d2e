"""How each engine plays the workload: ours, three ways of `transformers`, CTranslate2, and vLLM in its own process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from benchmarks.workload import MAX_NEW_TOKENS, SAMPLING, Conversations, Play, Run, Talks, Turn
from worker.engine.engine import Engine
from worker.engine.request import Request, SamplingParams

VLLM_PEER = Path(__file__).with_name("vllm_peer.py")


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, and which ids a reply ends with and which it may not hold."""

    model: PreTrainedModel
    name: str
    window: int
    allowed: Sequence[int]
    stop_ids: frozenset[int]
    banned_ids: frozenset[int]


def play_ours(engine: Engine) -> Play:
    """Return a player that keeps every conversation's current message in the engine."""
    import queue

    def play(talks: Conversations) -> Run:
        under_way = Talks(talks)
        answers: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()

        def send(talk: int, turn: Turn) -> None:
            n = turn.num_new_tokens
            params = SamplingParams(**SAMPLING, max_new_tokens=n, min_new_tokens=n, seed=turn.seed)
            future = engine.submit(Request(prompt_ids=turn.prompt_ids, params=params))
            future.add_done_callback(lambda done: answers.put((talk, len(done.result().ids))))

        num_open = 0
        for talk, turn in under_way.opening():
            send(talk, turn)
            num_open += 1
        while num_open:
            talk, num_tokens = answers.get()
            num_open -= 1
            for following, turn in under_way.answered(talk, num_tokens):
                send(following, turn)
                num_open += 1
        return under_way.run()

    return play


def play_one_at_a_time(subject: Subject) -> Play:
    """Return a player that answers message after message with `generate`, first come, first served."""
    return _play_generate(subject, batch_size=1)


def play_static_batches(subject: Subject, batch_size: int) -> Play:
    """Return a player that answers `batch_size` messages at a time, padded on the left, until the longest ends."""
    return _play_generate(subject, batch_size)


def _play_generate(subject: Subject, batch_size: int) -> Play:
    @torch.inference_mode()
    def answer(turns: Sequence[Turn]) -> None:
        torch.manual_seed(turns[0].seed)
        longest = max(len(turn.prompt_ids) for turn in turns)
        ids, mask = (
            torch.tensor(
                [[first] * (longest - len(t.prompt_ids)) + rest(t) for t in turns], device=subject.model.device
            )
            for first, rest in ((0, lambda t: list(t.prompt_ids)), (0, lambda t: [1] * len(t.prompt_ids)))
        )
        n = max(turn.num_new_tokens for turn in turns)
        subject.model.generate(ids, attention_mask=mask, generation_config=_config(subject, n))  # type: ignore[operator]

    return _play_batches(batch_size, answer)


def _play_batches(batch_size: int, answer: Callable[[Sequence[Turn]], object]) -> Play:
    def play(talks: Conversations) -> Run:
        under_way = Talks(talks)
        line = under_way.opening()
        while line:
            batch, line = line[:batch_size], line[batch_size:]
            answer([turn for _, turn in batch])
            for talk, turn in batch:
                line += under_way.answered(talk, turn.num_new_tokens)
        return under_way.run()

    return play


def play_continuous_batches(subject: Subject, max_num_seqs: int) -> Play:
    """Return a player on `transformers`' continuous batching, which has no repetition penalty."""

    config = _config(subject, MAX_NEW_TOKENS, repetition_penalty=1.0)
    config.eos_token_id = -1  # the number of tokens is given, and min_new_tokens is not known here
    config.suppress_tokens = None
    # Without bounds it takes most of the memory that is free.
    bounds = ContinuousBatchingConfig(page_size=32, num_blocks=32 * max_num_seqs, max_batch_tokens=512)
    manager: Any = subject.model.init_continuous_batching(  # type: ignore[operator]
        generation_config=config, continuous_batching_config=bounds
    )
    manager.start()

    def play(talks: Conversations) -> Run:
        under_way = Talks(talks)
        numbers: dict[str, int] = {}
        for talk, turn in under_way.opening():
            numbers[manager.add_request(list(turn.prompt_ids), max_new_tokens=turn.num_new_tokens)] = talk
        while numbers:
            output = manager.get_result(timeout=60.0)
            if output is None or not output.is_finished():
                raise RuntimeError(f"transformers' continuous batching ended early: {output and output.error}")
            for talk, turn in under_way.answered(numbers.pop(output.request_id), len(output.generated_tokens)):
                numbers[manager.add_request(list(turn.prompt_ids), max_new_tokens=turn.num_new_tokens)] = talk
        return under_way.run()

    return play


def play_ctranslate2(subject: Subject, batch_size: int, *, dtype: str) -> Play:
    """Return a player on CTranslate2, which has to be installed: `batch_size` messages until the longest ends."""
    from ctranslate2 import Generator
    from ctranslate2.converters import TransformersConverter

    class Tokens:
        """Stands for a tokenizer: every id is a word."""

        bos_token = eos_token = unk_token = str(min(subject.stop_ids))

        def get_vocab(self) -> dict[str, int]:
            return {str(token): token for token in range(subject.model.config.vocab_size)}

    class Converter(TransformersConverter):
        """Takes the model that is in memory."""

        def load_model(self, *_: object, **__: object) -> PreTrainedModel:
            return subject.model

        def load_tokenizer(self, *_: object, **__: object) -> Tokens:
            return Tokens()

    with tempfile.TemporaryDirectory() as scratch:
        subject.model.config.save_pretrained(scratch)
        folder = Converter(scratch).convert(str(Path(scratch, dtype)), quantization=dtype)
        generator = Generator(folder, device="cpu", compute_type=dtype, intra_threads=torch.get_num_threads())

    def answer(turns: Sequence[Turn]) -> None:
        n = max(turn.num_new_tokens for turn in turns)
        replies = generator.generate_batch(
            [[*map(str, turn.prompt_ids)] for turn in turns],
            min_length=n,
            max_length=n,
            suppress_sequences=[[str(token)] for token in sorted(subject.banned_ids)] or None,
            end_token=[*map(str, sorted(subject.stop_ids))],
            include_prompt_in_result=False,
            sampling_topk=0,
            sampling_topp=SAMPLING["top_p"],
            sampling_temperature=SAMPLING["temperature"],
            repetition_penalty=SAMPLING["repetition_penalty"],
        )
        if {len(reply.sequences_ids[0]) for reply in replies} != {n}:
            raise RuntimeError("CTranslate2 did not generate as many tokens as it was asked for")

    return _play_batches(batch_size, answer)


def _config(subject: Subject, num_new_tokens: int, **options: float) -> GenerationConfig:
    return GenerationConfig(
        do_sample=True,
        top_k=0,
        min_new_tokens=num_new_tokens,
        max_new_tokens=num_new_tokens,
        eos_token_id=sorted(subject.stop_ids),
        pad_token_id=min(subject.stop_ids),
        suppress_tokens=sorted(subject.banned_ids) or None,
        **{**SAMPLING, **options},
    )


class VllmPeer:
    """vLLM in another Python environment, kept running between the rounds."""

    def __init__(self, python: str, folder: Path, *, dtype: str, max_num_seqs: int) -> None:
        command = [python, str(VLLM_PEER), str(folder), dtype, str(max_num_seqs)]
        self._log = folder / "vllm.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self.rss_bytes = 0
        self._answer()

    def play(self, talks: Conversations) -> Run:
        """Let it play, and measure there."""
        given = [[(turn.prompt_ids, turn.num_new_tokens, turn.seed) for turn in turns] for turns in talks]
        print(json.dumps(given), file=_pipe(self._process.stdin), flush=True)
        answer = self._answer()
        self.rss_bytes = answer["rss_bytes"]
        return Run(answer["total_s"], tuple(answer["latencies_s"]), answer["num_tokens"])

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        line = _pipe(self._process.stdout).readline()
        if not line:
            said = "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])
            sys.exit(f"vLLM ended with status {self._process.wait()}: {said}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def vllm_peer(python: str, folder: Path, *, dtype: str, max_num_seqs: int) -> Iterator[VllmPeer]:
    """Start vLLM on the model in `folder`, and end it afterwards."""
    peer = VllmPeer(python, folder, dtype=dtype, max_num_seqs=max_num_seqs)
    try:
        yield peer
    finally:
        peer.close()


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream

"""vLLM behind our engine's interface, for those who have a large GPU and want its kernels.

Queue, turns, deadlines and listeners are ours (`loop.py`, `fairness.py`); schedule, cache, kernels and draws are
vLLM's, in a process of its own. What it can't do is refused: token types, int8, beam search, and some ways of sampling.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, Self, cast

import structlog
import torch

from personas.errors import SettingsError
from worker.engine.errors import RequestRefused
from worker.engine.fairness import FairQueue
from worker.engine.loop import MAX_GENERATION_S, EngineLoop
from worker.engine.prefix import PrefixCounts
from worker.engine.request import FinishReason, Request, SamplingParams
from worker.engine.request import Sequence as Running
from worker.engine.runner import vocabulary_size
from worker.engine.sampler import Token

if TYPE_CHECKING:
    from worker.loading import LoadedModel

log = structlog.get_logger(__name__)

NEVER: Final = -100.0  # vLLM's lowest bias
# Two engines have to fit beside each other while one model takes over from another.
GPU_MEMORY_SHARE: Final = 0.45
# What an operator has set already stays. Nothing is reported to anybody.
ENVIRONMENT: Final = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


class VllmEngine(EngineLoop):
    """Generates by vLLM for up to `max_num_seqs` requests side by side; more wait.

    A seed gives the same reply again only while nothing else is computed beside it, and never our own engine's reply.
    """

    def __init__(
        self,
        folder: str,
        *,
        window: int,
        vocabulary_size: int,
        stop_ids: Iterable[int] = (),
        banned_ids: Iterable[int] = (),
        dtype: str = "auto",
        is_on_cpu: bool = True,
        max_num_seqs: int = 16,
        max_num_waiting: int = 256,
        max_generation_s: float = MAX_GENERATION_S,
    ) -> None:
        """Start vLLM on the folder of a model, which it has read when this returns."""
        super().__init__(window=window, stop_ids=stop_ids, max_num_seqs=max_num_seqs, max_generation_s=max_generation_s)
        self._vocabulary_size = vocabulary_size
        self._banned_ids = frozenset(banned_ids)
        self._waiting = FairQueue(max_num_waiting)
        self._running: dict[int, Running] = {}
        self._numbers = itertools.count()
        self._counts = PrefixCounts()
        self._engine = _start(folder, window=window, dtype=dtype, max_num_seqs=max_num_seqs, is_on_cpu=is_on_cpu)

    @classmethod
    def for_model(cls, loaded: LoadedModel, **options: Any) -> Self:
        """Hand a loaded model over to vLLM; its own weights are freed.

        Raises `SettingsError` where vLLM is not there, or can't compute what this model does.
        """
        _check_fitness(loaded)
        with tempfile.TemporaryDirectory(prefix="personabot-vllm-") as folder:
            loaded.model.save_pretrained(folder)
            engine = cls(
                folder,
                window=loaded.window,
                vocabulary_size=vocabulary_size(loaded.model),
                stop_ids=loaded.layout.stop_ids,
                banned_ids=loaded.banned_ids,
                dtype=str(loaded.dtype).removeprefix("torch."),
                is_on_cpu=loaded.device.type == "cpu",
                **options,
            )
        cast(Any, loaded.model).to("meta")
        return engine

    def stop(self, *, drain: bool = False, timeout_s: float = MAX_GENERATION_S) -> None:
        """End the thread, as every engine does, and vLLM's process with it."""
        super().stop(drain=drain, timeout_s=timeout_s)
        self._engine.engine_core.shutdown()

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def prefix_counts(self) -> PrefixCounts:
        return self._counts

    @property
    def num_out_of_memory(self) -> int:
        return 0  # vLLM takes its memory at the start, and lets requests wait for it

    def _check(self, request: Request) -> None:
        request.check(self.window, self._vocabulary_size, self._max_num_seqs)
        sampling_options(request.params)

    def _add(self, sequences: list[Running]) -> None:
        self._waiting.add(*sequences)

    def _everyone(self) -> list[Running]:
        return [*self._running.values(), *self._waiting]

    def _step(self) -> None:
        """Let in whom vLLM has room for, let it compute a token for each, and publish them."""
        for sequence in self._admitted():
            self._hand_over(sequence)
        for output in self._engine.step() if self._running else ():
            self._publish(output)

    def _admitted(self) -> list[Running]:
        """Return whose turn it is now; they have slots from here on."""
        admitted = []
        with self._changed:
            while len(self._running) < self._max_num_seqs and (sequence := self._waiting.next()):
                self._waiting.take(sequence)
                sequence.slot = next(self._numbers)
                sequence.started_at = time.monotonic()
                self._running[sequence.slot] = sequence
                admitted.append(sequence)
        return admitted

    def _hand_over(self, sequence: Running) -> None:
        import vllm
        from vllm.inputs import TokensPrompt

        options = sampling_options(sequence.params, self._banned_ids) | {
            "max_tokens": sequence.max_tokens(self.window) - len(sequence.ids),
            "stop_token_ids": sorted(self._stop_ids),
            "seed": sequence.noise_key % 2**63,
            "logprobs": 0 if sequence.request.wants_log_prob else None,
            "output_kind": vllm.sampling_params.RequestOutputKind.DELTA,
        }
        prompt = TokensPrompt(prompt_token_ids=list(sequence.ids))
        try:
            self._engine.add_request(str(sequence.slot), prompt, vllm.SamplingParams(**options))
        except ValueError as error:
            self._end(sequence, RequestRefused(f"vLLM does not take the request: {error}"))

    def _publish(self, output: Any) -> None:
        sequence = self._running.get(int(output.request_id))
        if sequence is None:  # ended meanwhile
            return
        if not sequence.num_new_tokens:
            self._counts.num_tokens += len(sequence.request.prompt_ids)
            self._counts.num_reused_tokens += output.num_cached_tokens or 0
        reply = output.outputs[0]
        for place, token in enumerate(reply.token_ids):
            self._append(sequence, Token(token, reply.logprobs[place][token].logprob if reply.logprobs else 0.0))
            if sequence.slot is None:  # that was its last one
                return
        if output.finished:
            self._end(sequence, sequence.completion(FinishReason.LENGTH))

    def _free(self, sequence: Running) -> None:
        with self._changed:
            slot, sequence.slot = sequence.slot, None
            if slot is None:
                self._waiting.remove(sequence)
                return
            del self._running[slot]
        self._engine.abort_request([str(slot)])


def sampling_options(params: SamplingParams, banned_ids: Iterable[int] = ()) -> dict[str, Any]:
    """Return what vLLM calls `params`; raise `RequestRefused` where it has no such thing."""
    single = {ids[0]: bias for ids, bias in params.biases if len(ids) == 1}
    single |= {ids[0]: NEVER for ids in params.bad_words if len(ids) == 1}
    phrases = [ids for ids in (*params.bad_words, *(ids for ids, _ in params.biases)) if len(ids) > 1]
    missing = {
        "num_beams": params.num_beams > 1,
        "typical_p": params.do_sample and params.typical_p < 1,
        "no_repeat_ngram_size": params.no_repeat_ngram_size > 0,
        "bad_words or logit_bias for words of several tokens": bool(phrases),
    }
    if any(missing.values()):
        names = ", ".join(name for name, is_missing in missing.items() if is_missing)
        raise RequestRefused(f"vLLM has no {names}. Leave it out of the settings, or use --engine personabot.")
    return {
        "temperature": params.temperature if params.do_sample else 0.0,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "min_p": params.min_p,
        "repetition_penalty": params.repetition_penalty,
        "min_tokens": params.min_new_tokens,
        "logit_bias": single | dict.fromkeys(banned_ids, NEVER) or None,
        "ignore_eos": True,  # a layout's own tokens end a reply
        "detokenize": False,
    }


def _check_fitness(loaded: LoadedModel) -> None:
    why = ""
    if loaded.layout.token_types(()) is not None:
        why = f"the layout {loaded.layout.name} needs token types, which vLLM does not pass on"
    elif loaded.dtype is torch.int8:
        why = "int8 weights are packed by our own engine only"
    if why:
        raise SettingsError(f"engine: vllm can't serve {loaded.name}: {why}. Use --engine personabot.")
    if loaded.head is not None:
        log.warning("vLLM leaves the next-utterance head out: candidates are chosen without it", model=loaded.name)


def _start(folder: str, *, window: int, dtype: str, max_num_seqs: int, is_on_cpu: bool) -> Any:
    """Return vLLM's engine; on a CPU without its compiler, whose first step takes minutes there."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        from vllm import EngineArgs, LLMEngine
    except ImportError as error:
        raise SettingsError(
            f"engine: vllm was asked for and can't be imported ({error}). Install it in an environment of its own: "
            "docs/engine.md says how. Or use --engine personabot."
        ) from error
    started = time.monotonic()
    options = {"enforce_eager": True, "block_size": 32} if is_on_cpu else {"gpu_memory_utilization": GPU_MEMORY_SHARE}
    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=folder,
            runner="generate",
            dtype=dtype,
            max_num_seqs=max_num_seqs,
            max_model_len=window,
            skip_tokenizer_init=True,
            generation_config="vllm",
            disable_log_stats=True,
            **options,
        )
    )
    log.info("vLLM started", seconds=round(time.monotonic() - started, 1))
    return engine

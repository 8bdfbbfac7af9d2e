"""vLLM behind a pipe: started with the Python of an environment that has it, so it imports nothing but the workload.

Reads a JSON line of conversations, plays them, writes a JSON line with what was measured; ends with its input.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from workload import SAMPLING, Run, Talks, Turn


def engine_for(folder: str, dtype: str, max_num_seqs: int) -> Any:
    """Start vLLM's engine in this process, without its compiler: on a CPU that did not end in ten minutes."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1"}
    from vllm import EngineArgs, LLMEngine

    return LLMEngine.from_engine_args(
        EngineArgs(
            model=folder,
            dtype=dtype,
            max_num_seqs=max_num_seqs,
            max_model_len=1024,
            block_size=32,
            skip_tokenizer_init=True,
            enforce_eager=True,
            runner="generate",
            disable_log_stats=True,
        )
    )


def play(engine: Any, talks: Sequence[Sequence[Turn]]) -> Run:
    """Keep every conversation's current message in the engine."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    under_way = Talks(talks)
    numbers: dict[str, int] = {}

    def send(talk: int, turn: Turn) -> None:
        n = turn.num_new_tokens
        params = SamplingParams(**SAMPLING, min_tokens=n, max_tokens=n, ignore_eos=True, detokenize=False)
        name = f"{talk}-{len(numbers)}"
        numbers[name] = talk
        engine.add_request(name, TokensPrompt(prompt_token_ids=list(turn.prompt_ids)), params)

    for talk, turn in under_way.opening():
        send(talk, turn)
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                for talk, turn in under_way.answered(numbers[output.request_id], len(output.outputs[0].token_ids)):
                    send(talk, turn)
    return under_way.run()


def main() -> None:
    """Serve the pipe."""
    folder, dtype, max_num_seqs = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints must not come between the answers
    engine = engine_for(folder, dtype, int(max_num_seqs))
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        talks = [[Turn(tuple(ids), n, seed) for ids, n, seed in talk] for talk in json.loads(line)]
        print(json.dumps({**asdict(play(engine, talks)), "rss_bytes": rss_bytes()}), file=answers, flush=True)


def rss_bytes() -> int:
    """The memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()

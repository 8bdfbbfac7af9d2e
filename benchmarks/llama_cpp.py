"""llama.cpp as a player: the model that is in memory is written as GGUF and served by its own server, in this process.

Takes GPT-2 and Llama. `pip install xllamacpp` brings the server; the wheel on PyPI is built for AVX2, so a llama.cpp
built for the machine may be faster.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import torch
from gguf.quants import quantize
from transformers import PreTrainedModel

from benchmarks.peers import Subject
from benchmarks.workload import SAMPLING, Conversations, Play, Run, Talks, Turn

FORMATS = {"float32": gguf.GGMLQuantizationType.F32, "Q8_0": gguf.GGMLQuantizationType.Q8_0}
PROMPT_TOKENS_AT_ONCE = 512  # as ours


@contextmanager
def llama_cpp_player(subject: Subject, max_num_seqs: int, *, kind: str) -> Iterator[Play]:
    """Start a server with a slot for each of `max_num_seqs` sequences, which keeps what a slot has read."""
    import xllamacpp

    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "model.gguf"
        write_gguf(subject.model, file, FORMATS[kind])
        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_parallel, params.n_ctx = max_num_seqs, max_num_seqs * min(subject.window, PROMPT_TOKENS_AT_ONCE)
        params.n_batch = params.n_ubatch = PROMPT_TOKENS_AT_ONCE
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
        params.kv_unified, params.warmup, params.verbosity = False, True, -1
        server = xllamacpp.Server(params)
        with ThreadPoolExecutor(max_num_seqs) as pool:
            yield _player(server, pool, subject)
        del server


def _player(server: Any, pool: ThreadPoolExecutor, subject: Subject) -> Play:
    banned = [[token, False] for token in sorted(subject.banned_ids)]

    def answer(turn: Turn) -> int:
        asked = {
            "prompt": list(turn.prompt_ids),
            "n_predict": turn.num_new_tokens,
            "seed": turn.seed,
            "ignore_eos": True,
            "logit_bias": banned,
            "cache_prompt": True,
            "temperature": SAMPLING["temperature"],
            "top_p": SAMPLING["top_p"],
            "repeat_penalty": SAMPLING["repetition_penalty"],
            "repeat_last_n": PROMPT_TOKENS_AT_ONCE,
            "top_k": 0,
            "min_p": 0.0,
        }
        said = server.handle_completions(asked)
        if "error" in said:
            raise RuntimeError(f"llama.cpp refused a request: {said['error']['message']}")
        num_tokens = int(said["usage"]["completion_tokens"])
        if num_tokens != turn.num_new_tokens:
            raise RuntimeError("llama.cpp did not generate as many tokens as it was asked for")
        return num_tokens

    def play(talks: Conversations) -> Run:
        under_way = Talks(talks)
        open_ones: dict[Future[int], int] = {pool.submit(answer, turn): talk for talk, turn in under_way.opening()}
        while open_ones:
            done, _ = wait(open_ones, return_when=FIRST_COMPLETED)
            for future in done:
                for talk, turn in under_way.answered(open_ones.pop(future), future.result()):
                    open_ones[pool.submit(answer, turn)] = talk
        return under_way.run()

    return play


def write_gguf(model: PreTrainedModel, file: Path, kind: gguf.GGMLQuantizationType) -> None:
    """Write the weights of a GPT-2 or Llama, matrices as `kind`, with a vocabulary that spells no words."""
    config: Any = model.config
    arch = {"gpt2": gguf.MODEL_ARCH.GPT2, "llama": gguf.MODEL_ARCH.LLAMA}[config.model_type]
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[arch])
    is_llama = arch is gguf.MODEL_ARCH.LLAMA
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size if is_llama else config.n_inner or 4 * config.n_embd)
    writer.add_head_count(config.num_attention_heads)
    if is_llama:
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(model.config.rope_parameters["rope_theta"])
        writer.add_rope_dimension_count(config.head_dim)
    else:
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"w{token}" for token in range(config.vocab_size)])
    writer.add_token_types([gguf.TokenType.NORMAL] * config.vocab_size)
    writer.add_token_merges(["w 0"])
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if known is not None:
            _add(writer, known, _as_there(name, tensor, config), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _as_there(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """GPT-2's `Conv1D` turned to (out, in); Llama's queries and keys with the halves that rotate together as pairs."""
    if config.model_type == "gpt2" and tensor.dim() == 2 and ".h." in name:
        return tensor.T
    if config.model_type == "llama" and (".q_proj." in name or ".k_proj." in name):
        num_heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        return tensor.view(num_heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
    return tensor


def _add(writer: gguf.GGUFWriter, name: str, tensor: torch.Tensor, kind: gguf.GGMLQuantizationType) -> None:
    values = tensor.float().contiguous().numpy()
    is_matrix = values.ndim == 2 and "position" not in name and values.shape[1] % 32 == 0
    own = kind if is_matrix else gguf.GGMLQuantizationType.F32
    writer.add_tensor(name, quantize(values, own), raw_dtype=own)

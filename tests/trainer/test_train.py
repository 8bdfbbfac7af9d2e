"""Training runs on a few real dialogues: they learn, resume exactly, and leave checkpoints that load."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from personas.checkpoint import read_checkpoint
from personas.errors import LayoutError
from personas.layout import Part, load_layout
from tests.helpers.layouts import CHATML, persona_layout, tokenizer_json
from trainer.config import ConfigError, TrainConfig, load_config
from trainer.data import Batch, Corpus, Stream, bucketed
from trainer.evaluate import padded, score_dialogues
from trainer.formats import read_dialogues
from trainer.model import ATTENTION, fuse_activations, hidden_states
from trainer.optimizer import Optimizer, schedule
from trainer.train import Run

DATA = Path(__file__).parent / "data"
SHAPE = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "vocabulary": 400}


def config(**changes: object) -> TrainConfig:
    settings = {
        "name": "test",
        "data": [{"path": DATA / "personachat.jsonl", "questions": 0.5, "named": 0.5, "drop_facts": 0.5}],
        "scratch": SHAPE,
        "train_tokens": 6000,
        "batch_tokens": 600,
        "micro_tokens": 400,
        "max_tokens": 256,
        "learning_rate": 3e-3,
        "dtype": "fp32",
    }
    return load_config(None, settings | changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint" / "model.safetensors")


def test_a_run_from_scratch_learns_and_leaves_a_checkpoint_of_ours(tmp_path: Path) -> None:
    folder = Run.prepare(config(train_tokens=30_000), tmp_path).train()
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] - 1.0
    assert read_checkpoint(folder).kind == "full"
    assert load_layout(folder).name == "persona"
    assert "PersonaChat" not in (folder / "README.md").read_text()
    assert GPT2LMHeadModel.from_pretrained(folder).config.n_layer == 2
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["GPT2LMHeadModel"]


@pytest.mark.parametrize("optimizer_name", ["adamw", "muon"])
def test_an_interrupted_run_ends_with_the_same_weights_to_the_bit(tmp_path: Path, optimizer_name: str) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings = config(save_minutes=60, optimizer=optimizer_name)
    Run.prepare(settings, whole).train()
    run = Run.prepare(settings, parts)
    optimizer = Optimizer(run.model.named_parameters().items(), settings)
    for batches in run._steps():
        run._step(optimizer, batches)
        if run.place.step == 4:
            break
    run._save(optimizer)
    resumed = Run.prepare(settings, parts)
    resumed.train()
    assert resumed.place.step > 4
    expected, got = weights(whole), weights(parts)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_terminated_run_saves_and_the_same_command_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    arguments = [
        *("train", str(DATA / "personachat.jsonl"), "--out", str(tmp_path), "--max-tokens", "256"),
        *("--train-tokens", "400000", "--batch-tokens", "2000", "--micro-tokens", "2000", "--dtype", "fp32"),
    ]
    command = [sys.executable, "-m", "personabot", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True
    ) as process:
        while process.poll() is None and not (tmp_path / "log.jsonl").exists():
            time.sleep(0.05)  # asks whether the first step is done
        process.send_signal(number)
        process.wait(60)
    assert process.returncode == 128 + number
    state = torch.load(tmp_path / "last" / "state.pt", weights_only=True)
    assert 0 < state["place"]["num_tokens"] < 400_000


def test_accumulated_micro_batches_give_the_gradient_of_one_batch(tmp_path: Path) -> None:
    grads = []
    for micro_tokens in (300, 100_000):
        run = Run.prepare(config(micro_tokens=micro_tokens), tmp_path / str(micro_tokens))
        examples = [
            example
            for dialogue in run.stream.corpora[0].dialogues
            for example in run.layout.examples_of(dialogue.facts, dialogue.turns, max_tokens=256)
        ]
        batches = bucketed(examples, micro_tokens)
        run.config = run.config.model_copy(update={"max_norm": 1e9, "learning_rate": 0.0})
        taken = run._step(Optimizer(run.model.named_parameters().items(), run.config), batches)
        grads.append((len(batches), taken.loss, taken.norm))
    assert grads[0][0] > grads[1][0] == 1
    assert grads[0][1:] == pytest.approx(grads[1][1:], rel=1e-5)


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a chat template, in the folder form of the hub."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=448,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(shape).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer_json())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (folder / "chat_template.jinja").write_text(CHATML)
    return folder


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_lora_run_trains_only_the_adapter(tmp_path: Path, tiny_base: Path, dtype: str) -> None:
    lora = {"rank": 4, "alpha": 4}
    run = Run.prepare(config(base=str(tiny_base), layout="chat", lora=lora, dtype=dtype), tmp_path)
    before = {name: p.clone() for name, p in run.model.model.named_parameters()}
    folder = run.train()
    changed = {name for name, p in run.model.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    assert read_checkpoint(folder).base == str(tiny_base)
    assert not (folder / "model.safetensors").exists()


def test_a_full_fine_tune_of_a_base_with_the_persona_layout_adds_its_tokens(tmp_path: Path, tiny_base: Path) -> None:
    folder = Run.prepare(config(base=str(tiny_base), train_tokens=1500), tmp_path).train()
    assert load_layout(folder).name == "persona"
    assert LlamaForCausalLM.from_pretrained(folder).config.vocab_size % 64 == 0


def test_the_chat_layout_needs_a_base(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a base"):
        Run.prepare(config(layout="chat"), tmp_path)


def test_a_base_without_a_template_is_refused(tmp_path: Path, tiny_base: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (bare / name).write_bytes((tiny_base / name).read_bytes())
    with pytest.raises(LayoutError, match="no chat template"):
        Run.prepare(config(base=str(bare), layout="chat"), tmp_path / "run")


def test_training_attention_equals_the_standard_one(tiny_base: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(tiny_base)
    ids = torch.randint(0, 400, (3, 17))
    expected = model(ids).logits
    model.set_attn_implementation(ATTENTION)
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_the_fused_activation_computes_what_gpt2s_own_computes() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2)).eval()
    ids = torch.randint(0, 50, (2, 9))
    expected = model(ids).logits
    fuse_activations(model)
    assert isinstance(model.transformer.h[0].mlp.act, torch.nn.GELU)
    torch.testing.assert_close(model(ids).logits, expected)


def test_the_stream_gives_the_same_batches_from_any_place() -> None:
    settings = config()
    corpora = [Corpus.read(source) for source in settings.data]

    def stream() -> Stream:
        return Stream(corpora, persona_layout(), seed=5, micro_tokens=400, max_tokens=256, loss_on="bot")

    first = [batch for _, _, batch in zip(range(9), range(9), stream().batches(), strict=False)]
    later = next(stream().batches(window=first[6][0], skip=first[6][1]))
    assert later == first[6]


def test_scores_equal_transformers_own_loss(tmp_path: Path) -> None:
    folder = Run.prepare(config(), tmp_path).train()
    model, layout = GPT2LMHeadModel.from_pretrained(folder), load_layout(folder)
    dialogues = list(read_dialogues(DATA / "parlai.txt"))
    expected, num_labels = 0.0, 0
    for dialogue in dialogues:
        for example in layout.examples_of(dialogue.facts, dialogue.turns, max_tokens=256):
            labels = [i if p != Part.CONTEXT else -100 for i, p in zip(example.ids, example.parts, strict=True)]
            count = sum(label != -100 for label in labels)
            expected += model(torch.tensor([example.ids]), labels=torch.tensor([labels])).loss.item() * count
            num_labels += count
    score = score_dialogues(
        dialogues, layout, hidden_states(model, layout), model.get_output_embeddings().weight, max_tokens=256
    )
    bot_texts = [t.text for d in dialogues for t in d.turns if t.role == "bot"]
    assert score.num_tokens == num_labels
    assert score.nll_text + score.nll_stop == pytest.approx(expected, rel=1e-4)
    assert score.num_words == sum(len(text.split()) for text in bot_texts)
    assert score.num_bytes == sum(len(text.encode()) for text in bot_texts)


def test_a_uniform_model_scores_the_logarithm_of_its_vocabulary() -> None:
    layout, dialogues = persona_layout(), list(read_dialogues(DATA / "parlai.txt"))
    score = score_dialogues(
        dialogues,
        layout,
        lambda ids: torch.zeros(*ids.shape, 4),
        torch.zeros(layout.vocabulary_size, 4),
        max_tokens=256,
    )
    metrics = score.metrics()
    num_text = score.num_tokens - score.num_stops
    nats = math.log(layout.vocabulary_size)
    assert metrics["ppl_token"] == pytest.approx(layout.vocabulary_size)
    assert metrics["bpb"] == pytest.approx(num_text * nats / math.log(2) / score.num_bytes)
    assert metrics["ppl_word"] == pytest.approx(math.exp(num_text * nats / score.num_words))


def test_padding_does_not_change_a_row() -> None:
    ids, parts = padded(Batch([[5, 6, 7], [8]], [[Part.CONTEXT, Part.TEXT, Part.STOP], [Part.TEXT]]))
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert parts.tolist() == [[0, 1, 2], [1, 0, 0]]


def test_muon_moves_the_matrices_of_the_layers_and_adamw_the_rest(tmp_path: Path) -> None:
    run = Run.prepare(config(optimizer="muon"), tmp_path)
    adamw, muon = Optimizer(run.model.named_parameters().items(), run.config).parts
    by_muon = {id(p) for group in muon.param_groups for p in group["params"]}
    by_adamw = {id(p) for group in adamw.param_groups for p in group["params"]}
    names = {name for name, p in run.model.named_parameters().items() if id(p) in by_muon}
    assert names
    assert all(name.startswith("transformer.h.") and name.endswith("weight") for name in names)
    assert by_muon | by_adamw == {id(p) for p in run.model.parameters()}
    assert not by_muon & by_adamw


def test_the_schedule_rises_stays_and_falls_to_zero() -> None:
    factors = [schedule(step / 100, warmup=0.1, decay=0.4) for step in range(101)]
    assert factors[0] == 0.0
    assert set(factors[10:61]) == {1.0}
    assert factors[80] == pytest.approx(0.5)
    assert factors[100] == 0.0


def test_unknown_keys_and_bad_values_of_a_config_are_listed_together(tmp_path: Path) -> None:
    path = tmp_path / "train.toml"
    path.write_text('learningrate = 1\nseed = "x"\n[[data]]\npath = "a"\nshare = -1\n')
    with pytest.raises(ConfigError) as caught:
        load_config(path, {})
    assert {line.split(": ")[1] for line in str(caught.value).splitlines()} >= {"learningrate", "seed", "data.0.share"}


def test_the_shipped_configurations_are_valid() -> None:
    for path in Path(__file__).parents[2].glob("models/*/train.toml"):
        assert load_config(path, {}).name == path.parent.name

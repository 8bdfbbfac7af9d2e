"""What can be loaded, and what is said about what can't."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from personas.checkpoint import Description, write_description
from personas.conversation import Role, Turn
from personas.errors import CheckpointError, LayoutError, SettingsError
from personas.persona import GenerationSettings
from personas.registry import Registry
from tests.helpers.tiny_families import tiny_llama
from tests.helpers.tiny_model import tiny_checkpoint
from worker import loading
from worker.device import choose_device, choose_dtype
from worker.loading import Found, find_model, load_model, resolve_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def damaged(tiny: Path, tmp_path: Path) -> Path:
    """A copy to do harm to."""
    return Path(shutil.copytree(tiny, tmp_path / "damaged"))


def plain_copy(checkpoint: Path, folder: Path) -> Path:
    """The same model as a plain Hugging Face folder."""
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(checkpoint / name, folder / name)
    return folder


def adapter_on(base: Path, folder: Path, **options: Any) -> Path:
    """A LoRA adapter with random differences, written as a checkpoint."""
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(str(base))
    config = LoraConfig(**{"r": 4, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, **options})
    adapter = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    adapter.save_pretrained(str(folder))
    for name in ("tokenizer.json", "layout.json"):
        shutil.copy(base / name, folder / name)
    write_description(folder, Description(kind="adapter", base=str(base)))
    return folder


def llama_with_our_tokenizer(tiny: Path, folder: Path) -> Path:
    tiny_llama(vocabulary_size=448).save_pretrained(folder)
    for name in ("tokenizer.json", "layout.json"):
        shutil.copy(tiny / name, folder / name)
    return folder


def test_a_full_checkpoint_loads(tiny: Path) -> None:
    loaded = load_model(str(tiny), device="cpu", dtype="float32")
    assert isinstance(loaded.model, GPT2LMHeadModel)
    assert (loaded.name, loaded.layout.name, loaded.window) == ("tiny", "persona", 256)
    assert loaded.checkpoint is not None
    assert loaded.digest == loaded.checkpoint.digest
    assert loaded.checkpoint.generation == GenerationSettings(temperature=0.8, max_new_tokens=16)
    assert not loaded.model.training


def test_ids_that_stand_for_no_token_are_banned(tiny: Path) -> None:
    loaded = load_model(str(tiny), device="cpu")
    num_ids = loaded.model.config.vocab_size
    assert loaded.banned_ids >= set(range(loaded.layout.vocabulary_size, num_ids)) > set()
    assert loaded.banned_ids >= loaded.layout.banned_ids


def test_a_plain_folder_with_our_tokens_loads_with_the_persona_layout(tiny: Path, tmp_path: Path) -> None:
    loaded = load_model(str(plain_copy(tiny, tmp_path / "plain")), device="cpu")
    assert (loaded.layout.name, loaded.checkpoint, loaded.name) == ("persona", None, "plain")
    assert len(loaded.digest) == 12


def test_a_gpt2_folder_as_published_loads_with_the_dialogpt_layout(tmp_path: Path) -> None:
    """GPT-2's own tokenizer files are vocab.json and merges.txt; DialoGPT's folder looks the same."""
    folder = tmp_path / "gpt2"
    config = GPT2Config(vocab_size=260, n_positions=64, n_embd=32, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    letters = [*ByteLevel.alphabet(), "he", "ll", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({letter: place for place, letter in enumerate(letters)}))
    (folder / "merges.txt").write_text("#version: 0.2\nh e\nl l\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    loaded = load_model(str(folder), device="cpu")
    assert (loaded.layout.name, loaded.window) == ("dialogpt", 64)
    prompt = loaded.layout.prompt(["hello"], [Turn(Role.USER, "hell")], max_tokens=64, reserve=8)
    end = 258
    assert prompt.ids == [*loaded.layout.encode("hello"), end, *loaded.layout.encode("hell"), end]
    assert loaded.layout.stop_ids == {end}


GPT2_LAYERS, LLAMA_LAYERS = ["c_attn", "c_proj", "c_fc"], ["q_proj", "v_proj", "down_proj"]


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("gpt2", {"target_modules": GPT2_LAYERS}),
        ("gpt2", {"target_modules": GPT2_LAYERS, "use_dora": True}),
        ("llama", {"target_modules": LLAMA_LAYERS, "fan_in_fan_out": False}),
        ("llama", {"target_modules": LLAMA_LAYERS, "fan_in_fan_out": False, "use_rslora": True, "lora_alpha": 3}),
    ],
    ids=["gpt2", "gpt2 by peft", "llama", "llama with rslora"],
)
def test_an_adapter_is_merged_into_a_plain_model(
    tiny: Path, tmp_path: Path, family: str, options: dict[str, Any]
) -> None:
    from peft import PeftModel

    origin = tiny if family == "gpt2" else llama_with_our_tokenizer(tiny, tmp_path / "llama")
    folder = adapter_on(origin, tmp_path / "adapter", **options)
    loaded = load_model(str(folder), device="cpu", dtype="float32")
    base = AutoModelForCausalLM.from_pretrained(str(origin))
    assert type(loaded.model) is type(base)
    ids = torch.tensor([[1, 20, 30, 40]])
    before = base(ids).logits
    expected = PeftModel.from_pretrained(base, str(folder))(ids).logits
    torch.testing.assert_close(loaded.model(ids).logits, expected, atol=1e-3, rtol=1e-3)
    assert (expected - before).abs().max() > 0.1


def test_an_adapter_without_its_base_says_which_one_is_missing(tiny: Path, tmp_path: Path) -> None:
    folder = adapter_on(tiny, tmp_path / "adapter")
    write_description(folder, Description(kind="adapter", base="/nowhere/base"))
    with pytest.raises(CheckpointError, match="adapter on /nowhere/base"):
        load_model(str(folder))


def test_an_adapter_without_its_weights_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = adapter_on(tiny, tmp_path / "adapter")
    weights = load_file(folder / "adapter_model.safetensors")
    weights.pop(sorted(weights)[0])
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="adapter can't be added"):
        load_model(str(folder))


def without_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def with_cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def with_another_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_embd": 32}))


def with_an_unknown_type(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "crystal-ball"}')


def with_a_smaller_vocabulary(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["transformer.wte.weight"] = weights["transformer.wte.weight"][:100].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (without_a_weight, "1 weights are missing, among them transformer.h.1.mlp.c_fc.weight"),
        (with_cut_weights, "damaged or cut off"),
        (with_another_shape, "can't be loaded"),
        (with_an_unknown_type, "can't be loaded"),
        (with_a_smaller_vocabulary, "the model only 100"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors missing"),
    ],
)
def test_a_damaged_folder_is_refused_with_what_is_wrong(damaged: Path, harm: Callable[[Path], None], says: str) -> None:
    harm(damaged)
    with pytest.raises(CheckpointError, match=says) as refused:
        load_model(str(damaged))
    assert str(damaged) in str(refused.value)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither a checkpoint of ours .* nor a Hugging Face model"):
        load_model(str(tmp_path))


def test_a_folder_without_a_tokenizer_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = plain_copy(tiny, tmp_path / "plain")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(LayoutError, match=r"no tokenizer\.json"):
        load_model(str(folder))


def test_a_name_that_nobody_knows_says_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"nobody/nothing: there is no such folder here.*smollm2-135m-instruct"):
        load_model("nobody/nothing")


def test_a_path_that_is_not_there_is_not_taken_for_a_hub_id() -> None:
    with pytest.raises(CheckpointError, match="there is no such folder"):
        resolve_model("./runs/nothing")
    with pytest.raises(CheckpointError, match="there is no such folder"):
        resolve_model("/runs/some/where")


def test_the_shipped_default_is_the_first_that_is_complete(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "SHIPPED_FOLDER", tmp_path)
    with pytest.raises(CheckpointError, match="no model that can be used"):
        resolve_model()
    shutil.copytree(tiny, tmp_path / "starter")
    assert resolve_model() == tmp_path / "starter"
    shutil.copytree(tiny, tmp_path / "smollm2-persona")
    assert resolve_model() == tmp_path / "smollm2-persona"
    assert resolve_model("starter") == tmp_path / "starter"


def test_the_choice_of_device_and_dtype_gives_its_reason() -> None:
    device, why = choose_device("cpu")
    assert (device.type, why) == ("cpu", "asked for")
    assert choose_dtype(device, "float16") == (torch.float16, "asked for")
    dtype, why = choose_dtype(device)
    assert dtype in (torch.float32, torch.bfloat16)
    assert "bfloat16" in why or "this CPU computes with it" in why


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(SettingsError, match="cuda was asked for"):
        choose_device("cuda")
    assert choose_device()[0].type == "cpu"


def test_a_registered_name_is_its_current_version(tiny: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "checkpoints")
    first = registry.promote(registry.add(tiny, "ada").reference)
    second = registry.add(tiny_checkpoint(tmp_path / "other", seed=1), "ada")
    loaded = load_model("ada", device="cpu", registry=registry)
    assert (loaded.name, loaded.digest) == ("ada", first.digest)
    registry.promote(second.reference)
    assert load_model("ada", device="cpu", registry=registry).digest == second.digest
    assert load_model("ada@1", device="cpu", registry=registry).digest == first.digest


def test_without_a_name_the_chosen_one_is_found_and_else_the_shipped_default(tiny: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "checkpoints")
    assert find_model("", registry).reference.endswith("@shipped")
    registry.promote(registry.add(tiny, "ada").reference)
    registry.choose("ada")
    assert find_model("", registry).reference == registry.version("ada").reference
    assert find_model(str(tiny), registry) == Found("tiny", tiny)


def test_a_registered_version_whose_files_were_changed_is_not_loaded(tiny: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "checkpoints")
    version = registry.promote(registry.add(tiny, "ada").reference)
    layout = version.folder / "layout.json"
    layout.write_text(layout.read_text().replace('"version": 1', '"version": 9'))
    with pytest.raises(CheckpointError, match=r"layout\.json differs from what was added"):
        load_model("ada", registry=registry)

"""The second loss and its head: against torch and transformers, and learnt in a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2DoubleHeadsModel

from personas.layout import Part
from tests.trainer.test_train import DATA, config, tiny_base
from trainer.choice import ChoiceHead, choice_loss
from trainer.config import ConfigError
from trainer.data import Batch, bucketed_groups
from trainer.evaluate import padded
from trainer.optimizer import Optimizer
from trainer.step import take_gradient
from trainer.train import Run
from worker.head import load_head

__all__ = ["tiny_base"]
MANY = {"data": [{"path": DATA / "personachat.jsonl"}, {"path": DATA / "spc.jsonl"}, {"path": DATA / "parlai.txt"}]}


def test_the_loss_is_torchs_cross_entropy_of_the_candidates_scores() -> None:
    torch.manual_seed(0)
    head, states = ChoiceHead(8).train(False), torch.randn(5, 6, 8)
    choices = [[(0, 5), (1, 3), (2, 2)], [(3, 1), (4, 4), (2, 0)]]
    scores = torch.stack([torch.stack([head(states[place]).squeeze() for place in places]) for places in choices])
    expected = torch.nn.functional.cross_entropy(scores, torch.zeros(2, dtype=torch.long), reduction="sum")
    torch.testing.assert_close(choice_loss(head, states, choices), expected)


def test_every_candidate_follows_the_right_ones_context_and_ends_like_it(tmp_path: Path) -> None:
    run = Run.prepare(config(num_candidates=4, **MANY), tmp_path)
    groups = [group for corpus in run.stream.corpora for group in run.stream.groups(corpus, 0)]
    asked = [group for group in groups if group.ends]
    assert asked
    for group in asked:
        row, end = group.ends[0]
        reply = next(reply for reply in group.rows[0].replies if reply.stop == end)
        assert row == 0
        assert len(group.rows) == len(group.ends) == 4
        for number, (at, column) in enumerate(group.ends[1:], 1):
            assert at == number
            assert column == len(group.rows[at].ids) - 1
            assert group.rows[at].ids[: reply.start] == group.rows[0].ids[: reply.start]
            assert group.rows[at].ids[column] == group.rows[0].ids[end]
            assert not any(group.rows[at].parts)


def test_micro_batches_do_not_change_either_loss(tmp_path: Path) -> None:
    found = []
    for micro_tokens in (600, 100_000):
        run = Run.prepare(config(num_candidates=3, **MANY), tmp_path / str(micro_tokens))
        run.model.train(False)  # no dropout in the head
        groups = [group for corpus in run.stream.corpora for group in run.stream.groups(corpus, 1)]
        batches = bucketed_groups(groups, micro_tokens)
        optimizer = Optimizer(run.model.named_parameters().items(), run.config)
        found.append((len(batches), *take_gradient(run.model, optimizer, run.ranks, run.config, batches)))
    assert found[0][0] > found[1][0] == 1
    assert found[0][1:] == pytest.approx(found[1][1:], rel=1e-5)


def test_the_head_loads_into_transformers_own_class(tmp_path: Path) -> None:
    run = Run.prepare(config(num_candidates=4, lm_coef=0.5, train_tokens=2000, **MANY), tmp_path)
    folder = run.train()
    double = GPT2DoubleHeadsModel.from_pretrained(folder, dtype=torch.float32).eval()
    head = load_head(folder)
    assert head is not None
    ids, _ = padded(Batch([[5, 6, 7, 8]], [[Part.CONTEXT] * 4]))
    states = double.transformer(ids).last_hidden_state
    theirs = double(ids[None], mc_token_ids=torch.tensor([[3]])).mc_logits
    torch.testing.assert_close(head(states[0, 3]).squeeze(), theirs.squeeze(), rtol=1e-3, atol=1e-4)
    assert AutoModelForCausalLM.from_pretrained(folder).config.n_layer == 2


def test_the_second_loss_falls_when_only_it_is_trained(tmp_path: Path) -> None:
    changes = {"num_candidates": 2, "lm_coef": 0.0, "train_tokens": 40_000, "learning_rate": 5e-3, "batch_tokens": 2000}
    Run.prepare(config(**changes, **MANY), tmp_path).train()
    losses = [json.loads(line)["mc_loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert sum(losses[-4:]) / 4 < sum(losses[:4]) / 4 - 0.05


def test_beside_an_adapter_the_head_has_a_file_of_its_own(tmp_path: Path, tiny_base: Path) -> None:
    lora = {"rank": 2, "alpha": 2}
    settings = config(base=str(tiny_base), layout="chat", lora=lora, num_candidates=2, train_tokens=900, **MANY)
    folder = Run.prepare(settings, tmp_path).train()
    head = load_head(folder)
    assert head is not None
    assert head.weight.shape == (1, 32)


def test_a_checkpoints_own_head_is_gone_on_with(tmp_path: Path) -> None:
    folder = Run.prepare(config(num_candidates=2, train_tokens=900, **MANY), tmp_path / "first").train()
    again = Run.prepare(config(num_candidates=2, base=str(folder), **MANY), tmp_path / "again")
    head = load_head(folder)
    assert head is not None
    assert again.model.choice_head is not None
    assert torch.equal(again.model.choice_head.summary.weight, head.weight)


def test_a_checkpoint_without_the_head_says_so(tmp_path: Path) -> None:
    assert load_head(Run.prepare(config(train_tokens=600), tmp_path).train()) is None


def test_too_few_replies_to_choose_from_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="num_candidates: needs dialogue with at least 50 replies; the data has"):
        Run.prepare(config(num_candidates=4, data=[{"path": DATA / "named.jsonl"}]), tmp_path)

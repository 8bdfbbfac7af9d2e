"""Candidate sets are fair and fixed, and the one packed forward pass scores what separate ones would."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from personas.conversation import Role, Turn
from personas.layout import ConvaiLayout, Part
from tests.helpers.layouts import tokenizer_json
from tests.helpers.tiny_families import WINDOW, tiny_gpt2
from tests.helpers.tiny_model import tiny_checkpoint
from trainer.formats import Choice, DataError, Dialogue
from trainer.metrics import normalised
from trainer.ranking import Question, Ranker, digest, questions, rank
from worker.head import PREFIX, load_head
from worker.loading import LoadedModel, load_model

FACTS = ("my name is ada.", "i keep two dogs.")


def dialogues(number: int = 12, num_turns: int = 3) -> list[Dialogue]:
    return [
        Dialogue(
            FACTS,
            tuple(
                turn
                for place in range(num_turns)
                for turn in (Turn(Role.USER, f"what about {place}?"), Turn(Role.BOT, f"reply {number} {place}."))
            ),
        )
        for number in range(number)
    ]


@pytest.fixture(scope="module", params=["gpt2"])
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(str(tiny_checkpoint(tmp_path_factory.mktemp("m") / "tiny")), device="cpu", dtype="float32")


def test_every_question_has_twenty_different_candidates_of_other_dialogues_and_the_true_one_last() -> None:
    talks = dialogues()
    asked = questions(talks)
    assert len(asked) == 36
    for question in asked:
        assert len({tuple(normalised(text)) for text in question.candidates}) == 20
        own = question.candidates[-1].split()[1]
        assert all(text.split()[1] != own for text in question.candidates[:-1])


def test_candidates_depend_on_the_seed_and_not_on_how_many_are_asked() -> None:
    talks = dialogues()
    assert questions(talks, limit=2) == questions(talks)[:6]
    assert digest(questions(talks)) == digest(questions(talks))
    assert digest(questions(talks)) != digest(questions(talks, seed=2))


def test_candidates_that_the_data_offers_are_taken_as_they_are() -> None:
    (talk,) = dialogues(number=1)
    offered = replace(talk, choices=tuple(Choice(turn.text, ("no.", "yes.")) for turn in talk.turns[1::2]))
    assert [question.candidates for question in questions([offered])] == [
        ("no.", "yes.", f"reply 0 {place}.") for place in range(3)
    ]


def test_too_few_replies_are_an_error_that_says_so() -> None:
    with pytest.raises(DataError, match="ranking needs 19 different replies"):
        questions(dialogues(number=4))


def test_the_packed_pass_scores_each_candidate_as_a_pass_of_its_own(loaded: LoadedModel) -> None:
    ranker = Ranker(loaded.model, loaded.layout, window=loaded.window)
    turns = (Turn(Role.USER, "do you have any pets?"),)
    question = Question(FACTS, turns, ("yes, my dog is biscuit.", "no", "i live in a small town near the mountains."))
    for text, score in zip(question.candidates, ranker.scores(question).likelihood, strict=True):
        (example,) = loaded.layout.examples_of(FACTS, (*turns, Turn(Role.BOT, text)), max_tokens=loaded.window)
        logits = loaded.model(input_ids=torch.tensor([example.ids])).logits[0].log_softmax(-1)
        places = [place for place, part in enumerate(example.parts) if part is not Part.CONTEXT]
        alone = [float(logits[place - 1, example.ids[place]]) for place in places]
        assert score == pytest.approx(sum(alone) / len(alone), abs=1e-4)


def test_what_is_likely_anywhere_says_nothing_about_the_context(loaded: LoadedModel) -> None:
    ranker = Ranker(loaded.model, loaded.layout, window=loaded.window)
    candidates = ("yes, my dog is biscuit.", "no")
    nowhere = ranker.scores(Question((), (), candidates))
    assert nowhere.pmi == pytest.approx([0.0, 0.0], abs=1e-4)
    here = ranker.scores(Question(FACTS, (Turn(Role.USER, "do you have any pets?"),), candidates))
    lengths = [len(loaded.layout.reply_ids(text)) for text in candidates]
    gains = [
        (there - alone) * length
        for there, alone, length in zip(here.likelihood, nowhere.likelihood, lengths, strict=True)
    ]
    assert here.pmi == pytest.approx(gains, abs=1e-3)


def test_a_candidate_that_the_model_would_say_itself_ranks_first(loaded: LoadedModel) -> None:
    ranker = Ranker(loaded.model, loaded.layout, window=loaded.window)
    turns = (Turn(Role.USER, "where are you from?"),)
    ids = list(loaded.layout.prompt(FACTS, turns, max_tokens=200, reserve=20).ids)
    start = len(ids)
    for _ in range(8):
        logits = loaded.model(input_ids=torch.tensor([ids])).logits[0, -1]
        logits[[*loaded.banned_ids, *loaded.layout.stop_ids]] = -torch.inf
        ids.append(int(logits.argmax()))
    own = loaded.layout.text(ids[start:])
    question = Question(FACTS, turns, ("it often rains here in autumn.", "yes, thank you.", own))
    figures = rank(ranker, [question])
    assert figures["hits_at_1"] == 1.0
    assert figures["mrr"] == 1.0
    assert figures["num_ranked"] == 1


def test_a_context_longer_than_the_window_is_cut_and_still_ranked(loaded: LoadedModel) -> None:
    turns = tuple(Turn(Role.USER if place % 2 else Role.BOT, "hello there, how are you? " * 4) for place in range(40))
    ranker = Ranker(loaded.model, loaded.layout, window=loaded.window)
    scores = ranker.scores(Question(FACTS, turns, ("yes", "no " * 300))).likelihood
    assert all(score < 0 for score in scores)


def test_the_head_scores_the_state_at_the_end_token(loaded: LoadedModel, tmp_path: Path) -> None:
    assert load_head(tmp_path) is None
    weights = {f"{PREFIX}summary.weight": torch.randn(1, 64), f"{PREFIX}summary.bias": torch.tensor([0.5])}
    save_file(weights, tmp_path / "model.safetensors")
    turns, text = (Turn(Role.USER, "do you have any pets?"),), "yes, my dog is biscuit."
    ranker = Ranker(loaded.model, loaded.layout, window=loaded.window, head=load_head(tmp_path))
    score, _ = ranker.scores(Question(FACTS, turns, (text, "no"))).head
    (example,) = loaded.layout.examples_of(FACTS, (*turns, Turn(Role.BOT, text)), max_tokens=loaded.window)
    states = loaded.model.transformer(input_ids=torch.tensor([example.ids])).last_hidden_state[0]
    assert score == pytest.approx(float(states[-1] @ weights[f"{PREFIX}summary.weight"][0] + 0.5), abs=1e-3)


def test_a_layout_with_token_types_gives_each_candidate_its_own() -> None:
    layout = ConvaiLayout(tokenizer_json(300), max_tokens=WINDOW)
    model = tiny_gpt2()
    model.set_attn_implementation("sdpa")
    turns = (Turn(Role.USER, "hello there"),)
    question = Question(("I am Ada.",), turns, ("I am well.", "thank you!"))
    scores = Ranker(model, layout, window=WINDOW).scores(question)
    for text, score in zip(question.candidates, scores.likelihood, strict=True):
        (example,) = layout.examples_of(question.facts, (*turns, Turn(Role.BOT, text)), max_tokens=WINDOW)
        ids, types = torch.tensor([example.ids]), torch.tensor([layout.token_types(example.ids)])
        logits = model(input_ids=ids, token_type_ids=types).logits[0].detach().log_softmax(-1)
        places = [place for place, part in enumerate(example.parts) if part is not Part.CONTEXT]
        alone = [float(logits[place - 1, example.ids[place]]) for place in places]
        assert score == pytest.approx(sum(alone) / len(alone), abs=1e-4)

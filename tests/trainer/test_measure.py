"""What `personabot evaluate` measures beyond perplexity, on a tiny model and a few real dialogues."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from personas.catalogue import load_catalogue
from personas.conversation import Role, Turn
from tests.trainer.test_cli import DATA, evaluate
from tests.trainer.test_ranking import dialogues, loaded  # noqa: F401
from trainer.card import card
from trainer.data import spoken
from trainer.decode import asked_in, fixed_samples
from trainer.evaluate import Score, swap_figures, swapped, without_persona
from trainer.evaluate_cli import _on_data
from trainer.formats import Dialogue, read_dialogues
from trainer.measure import Measurements
from trainer.ranking import questions
from worker.loading import LoadedModel

NOTHING_ELSE = {"is_ranked": False, "is_replied": False, "is_swapped": False}


def test_swapping_gives_every_dialogue_another_ones_persona_and_keeps_the_turns() -> None:
    talks = [Dialogue((f"i am {number}.",), ()) for number in range(9)]
    others = swapped(talks)
    assert sorted(talk.facts for talk in others) == [talk.facts for talk in talks]
    assert all(own.facts != other.facts for own, other in zip(talks, others, strict=True))
    assert swapped(talks) == others
    assert {talk.facts for talk in without_persona(talks)} == {()}


def test_swap_figures_are_differences_a_word() -> None:
    right, other, none = (Score(nll_text=nll, num_words=10) for nll in (20.0, 25.0, 30.0))
    figures = swap_figures(right, other, none)
    assert figures["swap_nll"] == pytest.approx(-0.5)
    assert figures["none_nll"] == pytest.approx(-1.0)
    assert figures["persona_lowers_ppl"] == pytest.approx(1 - 2.718281828**-1)


def test_every_bot_turn_that_follows_something_is_asked_for_with_what_came_before() -> None:
    (talk,) = dialogues(number=1)
    asked = asked_in([talk, Dialogue((), talk.turns[1:2])])
    assert [len(one.turns) for one in asked] == [1, 3, 5]
    assert asked[2].own == ("reply 0 0.", "reply 0 1.")
    assert asked[2].answer == "reply 0 2."


def test_turns_that_the_data_marks_as_context_are_neither_scored_nor_asked_for(loaded: LoadedModel) -> None:  # noqa: F811
    (talk,) = dialogues(number=1)
    marked = replace(talk, untrained=frozenset({1, 3}))
    scored = Measurements(loaded).score([marked])
    assert scored["num_turns"] == 1
    assert scored["num_turns_left_out"] == 0
    assert scored["num_words"] == len(talk.turns[5].text.split())
    assert [one.answer for one in asked_in([marked])] == [talk.turns[5].text]
    asked = questions([marked, *dialogues()[1:]], limit=1)
    assert [question.candidates[-1] for question in asked] == [talk.turns[5].text]


def test_measurements_give_the_same_figures_in_any_order(loaded: LoadedModel) -> None:  # noqa: F811
    talks = list(read_dialogues(DATA / "parlai.txt"))[:2]
    measure = Measurements(loaded)
    first = measure.score(talks, is_swapped=True), measure.rank(dialogues(), limit=1), measure.replies(talks)
    again = measure.replies(talks), measure.rank(dialogues(), limit=1), measure.score(talks, is_swapped=True)
    assert first == tuple(reversed(again))
    assert first[2]["greedy"]["num_replies"] == first[2]["sampled"]["num_replies"] > 2
    assert first[2]["greedy"] != first[2]["sampled"]


def test_there_are_twenty_fixed_prompts_each_after_the_greeting() -> None:
    contexts = fixed_samples(load_catalogue(None))
    assert len(contexts) == 20
    assert all([turn.role for turn in one.turns] == [Role.BOT, Role.USER] for _, one in contexts)


def test_evaluate_writes_metrics_and_samples(tmp_path: Path, tiny_folder: str) -> None:
    out = tmp_path / "out"
    flags = ("--swap", "--replies", "--limit", "2", "--json", "--out", str(out))
    done = evaluate(tiny_folder, str(DATA / "parlai.txt"), *flags)
    figures = json.loads(done.stdout)
    assert json.loads((out / "metrics.json").read_text()) == figures
    assert figures["replies"].keys() == {"greedy", "sampled"}
    assert figures["swap"]["ppl_word_swapped"] > 0
    page = (out / "samples.md").read_text()
    assert sum(line.startswith("|") for line in page.splitlines()) == 22


def test_evaluate_reads_whose_lines_are_the_bots_and_limits_both_sides_alike(tmp_path: Path, tiny_folder: str) -> None:
    script = tmp_path / "rick.csv"
    lines = [
        f"{who},scene {scene},line {scene} {place}" for scene in range(12) for place, who in enumerate(["Mo", "Rick"])
    ]
    script.write_text("\n".join(["name,scene,line", *lines]))
    done = evaluate(
        tiny_folder, str(script), "--speaker", "Rick", "--rank", "--rank-limit", "2", "--both-sides", "--json"
    )
    figures = json.loads(done.stdout)
    assert figures["num_dialogues"] == 24
    assert figures["rank"]["num_ranked"] == 4


def test_evaluate_cuts_prose_as_training_does(loaded: LoadedModel) -> None:  # noqa: F811
    prose = Dialogue((), (Turn(Role.BOT, "The bees are asleep. Nobody knows where the queen is.\n\n" * 60),))
    figures = _on_data(Measurements(loaded), [prose], False, None, None, **NOTHING_ELSE)
    assert figures["num_turns_left_out"] == 0
    assert figures["num_dialogues"] == len(spoken(prose)) > 10


def test_ranking_needs_data(tiny_folder: str) -> None:
    done = evaluate(tiny_folder, "--rank", "--probe")
    assert done.returncode == 1
    assert "name a data file" in done.stderr


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tests.helpers.tiny_model import tiny_checkpoint

    return str(tiny_checkpoint(tmp_path_factory.mktemp("m") / "tiny", max_new_tokens=4))


def test_the_card_tells_what_was_measured(tmp_path: Path) -> None:
    shape = "[scratch]\nnum_layers = 2\nhidden_size = 64\nvocabulary = 400\n"
    data = '[[data]]\npath = "a/b.txt"\nlicence = ""\nshare = 1.0\n'
    (tmp_path / "train.toml").write_text(f'name = "tiny"\nlayout = "persona"\nmax_tokens = 256\n{shape}{data}')
    scored = {"ppl_word": 20.0, "bpb": 1.0, "ppl_token": 15.0, "num_words": 900, "num_dialogues": 40}
    rank = {"hits_at_1": 0.5, "num_candidates": 20, "num_ranked": 60, "candidates_sha256": "abc123"}
    replies = {"greedy": {"f1": 0.18, "num_replies": 60}, "sampled": {"f1": 0.16}}
    swap = {"persona_lowers_ppl": 0.25, "swap_nll": -0.3}
    plain = {"evaluation": {"a.txt": scored, "b.txt": scored | {"rank": rank, "replies": replies, "swap": swap}}}
    text = card(tmp_path, plain)
    assert "lowers word perplexity by 25.0% against none" in text
    assert "first in 50.0% of 60 turns by likelihood (candidates abc123" in text
    assert "F1 of 60 replies: 18.0% greedy, 16.0% sampled." in text
    assert "On `a.txt`" not in text


def test_the_card_of_an_adapter_that_goes_on_from_another_names_the_base_of_both(tmp_path: Path) -> None:
    data = '[[data]]\npath = "a/b.txt"\n'  # as a person writes it, without what goes without saying
    named = 'name = "more"\nbase = "runs/first/checkpoint"\nlayout = "chat"\nmax_tokens = 256\n'
    (tmp_path / "train.toml").write_text(f"{named}[lora]\nrank = 4\nalpha = 4\n{data}")
    (tmp_path / "checkpoint.json").write_text('{"kind": "adapter", "base": "smollm2-135m-instruct"}')
    assert "A LoRA adapter of rank 4 on smollm2-135m-instruct, trained" in card(tmp_path, {})


def test_the_card_of_a_plain_text_voice_promises_no_dialogue(tmp_path: Path) -> None:
    named = 'name = "bees"\nbase = "smollm2-135m-instruct"\nlayout = "corpus"\nmax_tokens = 256\n'
    (tmp_path / "train.toml").write_text(f'{named}[lora]\nrank = 4\nalpha = 4\n[[data]]\npath = "bees.txt"\n')
    text = card(tmp_path, {})
    assert "trained on plain text." in text
    assert "personabot chat --model-path .\n" in text
    assert "models/" not in text
    assert "goes on with a text as it was written" in text
    assert "dialogue of paid volunteers" not in text

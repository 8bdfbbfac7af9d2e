"""What speaks against training on a data set, as figures with their limits. Pure but for the model's bits per byte.

Each kind of broken data has a figure of its own: copies, one line over and over, nothing said, another alphabet,
another language or gibberish (the present model is surprised), shuffled words (their order tells the model nothing).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from personas.conversation import Role
from personas.limits import DataLimits
from personas.lineage import Figure, Verdict
from trainer.formats import Dialogue

MAX_MEASURED = 60  # dialogues: enough for two digits of a ratio, some seconds on a CPU
BitsPerByte = Callable[[Sequence[Dialogue]], float]


def check_texts(dialogues: Sequence[Dialogue], general: Sequence[Dialogue], limits: DataLimits) -> list[Figure]:
    """Return the figures that need no model. Raises `ValueError` where there are no dialogues."""
    if not dialogues:
        raise ValueError("there are no dialogues to check")
    return [
        Figure(name="duplicate dialogues", value=share_of_copies(dialogues), limit=limits.max_duplicates),
        Figure(name="same line", value=share_of_commonest_line(dialogues), limit=limits.max_repeated_line),
        Figure(name="turns without a word", value=share_without_words(dialogues), limit=limits.max_empty),
        Figure(name="dialogues without a reply", value=share_without_reply(dialogues), limit=limits.max_unanswered),
        Figure(name="foreign letters", value=share_foreign(dialogues, general), limit=limits.max_foreign_letters),
    ]


def check_with_model(
    dialogues: Sequence[Dialogue], general: Sequence[Dialogue], bits_per_byte: BitsPerByte, limits: DataLimits
) -> list[Figure]:
    """Return the figures for which the present model reads a sample of the data, of which some bot turn has a word."""
    sample = evenly(dialogues, MAX_MEASURED)
    on_new, on_general = bits_per_byte(sample), bits_per_byte(general)
    shuffled = bits_per_byte([with_shuffled_words(dialogue, seed=place) for place, dialogue in enumerate(sample)])
    return [
        Figure(
            name="surprise of the present model",
            value=on_new / on_general,
            limit=limits.max_surprise,
            unit=f"times its {on_general:.3g} bits per byte on the general set",
        ),
        Figure(
            name="word order",
            value=shuffled / on_new,
            limit=limits.min_order,
            rule="at least",
            unit=f"times its {on_new:.3g} bits per byte once the words are shuffled",
        ),
    ]


def check_data(
    dialogues: Sequence[Dialogue], general: Sequence[Dialogue], bits_per_byte: BitsPerByte, limits: DataLimits
) -> Verdict:
    """Return the verdict of the dry run; the model is asked only if the texts themselves pass."""
    figures = check_texts(dialogues, general, limits)
    if all(figure.is_met for figure in figures):
        figures += check_with_model(dialogues, general, bits_per_byte, limits)
    return Verdict(figures=tuple(figures))


def share_of_copies(dialogues: Sequence[Dialogue]) -> float:
    """Return the share of dialogues whose turns all stand in an earlier one in the same words."""
    return 1 - len({tuple(plain(turn.text) for turn in dialogue.turns) for dialogue in dialogues}) / len(dialogues)


def share_of_commonest_line(dialogues: Iterable[Dialogue]) -> float:
    """Return the share of bot turns that repeat the line that the bot says most often."""
    lines = Counter(map(plain, bot_texts(dialogues)))
    return (max(lines.values()) - 1) / lines.total() if lines else 0.0


def share_without_words(dialogues: Iterable[Dialogue]) -> float:
    """Return the share of bot turns without a letter or digit."""
    texts = bot_texts(dialogues)
    return sum(not plain(text) for text in texts) / max(len(texts), 1)


def share_without_reply(dialogues: Sequence[Dialogue]) -> float:
    """Return the share of dialogues in which the bot says nothing: readers drop turns of white space."""
    return sum(not any(map(plain, bot_texts([dialogue]))) for dialogue in dialogues) / len(dialogues)


def share_foreign(dialogues: Iterable[Dialogue], general: Iterable[Dialogue]) -> float:
    """Return the share of letters that do not occur in the general set, upper and lower case alike."""
    alphabet = {letter for text in bot_texts(general) for letter in text.casefold()}
    letters = [letter for text in bot_texts(dialogues) for letter in text.casefold() if letter.isalpha()]
    return sum(letter not in alphabet for letter in letters) / max(len(letters), 1)


def with_shuffled_words(dialogue: Dialogue, *, seed: int) -> Dialogue:
    """Return the dialogue with the words of each turn in random order."""
    rng = random.Random(seed)

    def shuffled(text: str) -> str:
        words = text.split()
        return " ".join(rng.sample(words, len(words)))

    turns = tuple(replace(turn, text=shuffled(turn.text) or turn.text) for turn in dialogue.turns)
    return replace(dialogue, turns=turns, choices=())


def evenly(dialogues: Sequence[Dialogue], number: int) -> list[Dialogue]:
    """Return up to `number` dialogues from all over the data."""
    step = max(len(dialogues) / number, 1.0)
    return [dialogues[int(place * step)] for place in range(min(number, len(dialogues)))]


def bot_texts(dialogues: Iterable[Dialogue]) -> list[str]:
    """Return what the bot says, turn by turn."""
    return [turn.text for dialogue in dialogues for turn in dialogue.turns if turn.role is Role.BOT]


def plain(text: str) -> str:
    """Return the letters and digits of a text with single spaces between, so that equal lines compare equal."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())

"""Questions about the persona, put into training dialogues. Pure functions; the rules are plain patterns.

Persona dialogue rarely asks for a name or a stated fact outright, while people in chats do so at once. From each fact that a
pattern fits, a question and an answer that uses the fact are made and inserted between two turns. The catalogue
and the probe's questions are never seen here.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from personas.conversation import Role, Turn
from trainer.formats import Dialogue

FIRST_NAMES = (
    "Ada Alma Amir Anna Arthur Asha Ben Bianca Boris Bruno Cara Carlos Chloe Clara Dana Daniel Dora Edith Elena Eli Emma Erik Esther "
    "Fatima Felix Fiona Frank Gloria Grace Hana Harold Hugo Ida Igor Iris Ivan Jack Jana Jonas Julia Kai Karim Kate Kenji Lars Laura "
    "Leo Lena Lily Louis Lucia Lukas Maya Marco Maria Mark Mia Milo Mona Nadia Neil Nina Noah Nora Olga Oliver Omar Oscar Paul Petra "
    "Priya Rafael Rita Robin Rosa Ruth Sam Sara Simon Sofia Stella Sven Tara Theo Thomas Tom Uma Vera Victor Wanda Will Yara Yusuf Zoe"
).split()
LAST_NAMES = (
    "Abbott Adler Baker Becker Bell Berg Blake Brandt Carter Castle Chen Cole Cruz Dahl Diaz Doyle Ellis Evans Fischer Flores Ford Fox "
    "Garcia Gray Green Haas Hale Hart Hill Holm Hughes Ito Jansen Keller Khan Kim King Klein Kowalski Lang Lee Lopez Lund Marsh Meyer "
    "Mills Moore Moreau Nguyen Novak Olsen Park Patel Petrov Quinn Reed Rossi Sato Shaw Silva Singh Stone Tanaka Torres Vega Wagner "
    "Walsh Weber West Wolf Wood Wright Young Zhang"
).split()
NAME_QUESTIONS = (
    "what's your name?", "what is your name?", "who are you?", "and you are?", "may i ask your name?", "hi, who is this?",
    "what are you called?", "can you tell me your name?", "your name?", "i didn't get your name", "what do people call you?",
    "sorry, what was your name again?", "do you have a name?", "what do your friends call you?", "i'm {other}, and you?",
    "how should i call you?", "tell me your name please", "hello! i'm {other}. who are you?", "what name do you go by?",
)
NAME_ANSWERS = (
    "My name is {name}.", "I'm {name}.", "I am {name}, nice to meet you!", "{name}. And you?", "My name's {name}. What's yours?",
    "I'm {name}, how about you?", "{name}! Nice to meet you.", "You can call me {first}.", "People call me {first}.", "It's {name}.",
)
REACTIONS = ("", "", "", "", "cool. ", "nice! ", "oh ok. ", "haha. ", "i see. ", "so ", "great, ", "hey, ", "by the way, ", "tell me, ")
TAILS = ("", "", "", "", "", " How about you?", " What about you?", " And you?", " Do you?")

# (pattern over a lower-case fact, questions); {0}, {1} are the groups. The answer is the fact itself, said as a reply.
RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"i(?: am|'m) (\d+)(?: years old)?$", ("how old are you?", "what's your age?", "may i ask how old you are?")),
    (
        r"i (?:work|worked) (.*)$",
        ("what do you do for a living?", "what's your job?", "where do you work?", "what kind of work do you do?", "do you have a job?"),
    ),
    (
        r"i(?: am|'m) (an? (?:\w+ )?(?:\w+(?:er|or|ist|ian|ant|ent|man|woman|cop|chef|nurse|cook|clerk|pilot|dean|vet|judge)))\b.*$",
        ("what do you do for a living?", "what's your job?", "what do you do?", "what kind of work do you do?", "what are you?"),
    ),
    (r"(?:my job|my profession) (.*)$", ("what do you do for a living?", "what's your job?")),
    (r"i (?:own|run|manage) (.*)$", ("what do you do for a living?", "do you own anything special?", "do you run {0}?")),
    (
        r"i (?:live|reside)(?: (?:in|on|at|near|by|with)) (.*)$",
        ("where do you live?", "where is your home?", "where's home for you?", "tell me about where you live", "what's your place like?"),
    ),
    (
        r"i(?: am|'m|was born| was raised| come| grew up|'m originally| am originally) ?(?:from|in|on) (.*)$",
        ("where are you from?", "where did you grow up?", "where do you come from?", "where were you born?"),
    ),
    (
        r"i have (?:an? |\w+ )?(dog|cat|parrot|horse|turtle|hamster|rabbit|bird|fish|snake|lizard|goat|pet)s?\b.*$",
        ("do you have any pets?", "do you have a {0}?", "any animals at home?", "do you own any animals?", "tell me about your {0}",
         "what pets do you have?", "what is your {0} called?"),
    ),
    (r"my (dog|cat|parrot|horse|turtle|pet)(?:'s|s)? .*$", ("do you have any pets?", "tell me about your {0}", "do you have a {0}?")),
    (
        r"i have .*\b(brother|sister|sibling|son|daughter|kid|child|children|twin|grandchildren|wife|husband)s?\b.*$",
        ("do you have any {0}s?", "tell me about your family", "do you have a family?", "any family?", "do you have a {0}?"),
    ),
    (
        r"my (mother|mom|father|dad|parents|wife|husband|brother|sister|son|daughter|grandmother|grandfather|uncle|aunt|boyfriend|girlfriend|family|boss|best friend)\b.*$",
        ("tell me about your {0}", "what about your {0}?", "who is important to you?", "what does your {0} do?", "do you have a {0}?"),
    ),
    (r"my favou?rite (\w+(?: \w+)?) (?:is|are|was) .*$", ("what's your favorite {0}?", "do you have a favorite {0}?", "which {0} do you like most?")),
    (r".* (?:is|are) my favou?rite (\w+).*$", ("what's your favorite {0}?", "do you have a favorite {0}?")),
    (
        r"i (?:really |absolutely )?(?:love|like|enjoy|adore) (\w+ing\b.*|to .*)$",
        ("what do you like to do?", "what do you do for fun?", "any hobbies?", "what are your hobbies?", "what do you do in your free time?",
         "how do you spend your evenings?", "what do you enjoy?", "do you like {0}?"),
    ),
    (r"i (?:really |absolutely )?(?:love|like|enjoy|adore) (.*)$", ("what do you love?", "do you like {0}?", "what do you like?", "what makes you happy?")),
    (
        r"i (?:hate|dislike|can't stand|cannot stand|do not like|don't like) (.*)$",
        ("is there anything you hate?", "what do you dislike?", "what can't you stand?", "what annoys you?", "do you like {0}?"),
    ),
    (
        r"i(?: am|'m) (?:afraid|scared|terrified) of (.*)$",
        ("what are you afraid of?", "what scares you?", "any fears?", "are you afraid of {0}?", "do you have a phobia?"),
    ),
    (r"i(?: am|'m) allergic to (.*)$", ("do you have any allergies?", "are you allergic to anything?", "is there something you can't eat?")),
    (
        r"i (?:can )?play (?:the |an? )?(.*)$",
        ("do you play any instruments?", "do you play anything?", "do you do any sports?", "do you make music?", "what do you play?"),
    ),
    (r"i (?:drive|ride) (.*)$", ("what do you drive?", "how do you get around?", "do you have a car?", "what do you ride?")),
    (
        r"(?:i (?:want|hope|would like|dream|wish|plan)|i'd like|one day i|someday i|my dream)\b(.*)$",
        ("what is your dream?", "what do you want in life?", "any plans for the future?", "what are you hoping for?", "do you have a goal?"),
    ),
    (r"i collect (.*)$", ("do you collect anything?", "what do you collect?", "any collections?", "what's that on your shelf?")),
    (r"i (?:speak|am fluent in) (.*)$", ("what languages do you speak?", "do you speak other languages?")),
    (r"i (?:only )?(?:eat|cook|bake|make|drink|brew) (.*)$", ("what do you like to eat?", "do you cook?", "what do you make?", "what do you drink?")),
    (r"i(?: am|'m) (?:studying|learning) (.*)$", ("what are you studying?", "are you learning anything?", "do you go to school?")),
    (r"i(?: am|'m) (married|single|divorced|engaged)\b.*$", ("are you married?", "are you single?", "do you have a partner?")),
    (r"i (?:never|rarely|always|every \w+|often|usually) (.*)$", ("any habits?", "what is special about you?", "do you have any habits i should know?")),
    (
        r"i (?:used to|was once|once|spent|served) (.*)$",
        ("what did you do before?", "tell me about your past", "what did you do when you were younger?", "any stories from the past?"),
    ),
    (r"i wear (.*)$", ("what do you wear?", "what do you look like?", "how would i recognize you?")),
    (r"i (?:believe|think) (.*)$", ("what do you believe in?", "what do you think?")),
    (r"i (?:grow|keep|raise|breed) (.*)$", ("do you grow anything?", "do you keep any animals?", "what do you grow?", "what do you keep?")),
    (r"i (\w+) (.*)$", ("do you {0} {1}?", "tell me something about yourself", "what should i know about you?", "what's special about you?")),
    (r"my (\w+) (.*)$", ("tell me about your {0}", "what about your {0}?", "what is your {0} like?")),
)
_COMPILED = tuple((re.compile(pattern), questions) for pattern, questions in RULES)


def spaced(text: str) -> str:
    """Put spaces around punctuation, as ConvAI2's own files have it ("good , and you ?")."""
    return " ".join(re.sub(r"([.,!?;()])", r" \1 ", text).split())


def with_name(dialogue: Dialogue, rng: random.Random) -> Dialogue:
    """Give the bot a name, as a first fact, where the data has none."""
    if dialogue.name:
        return dialogue
    name = rng.choice(FIRST_NAMES) + (f" {rng.choice(LAST_NAMES)}" if rng.random() < 0.6 else "")
    facts = list(dialogue.facts)
    facts.insert(rng.choice((0, 0, 0, len(facts))), rng.choice(("My name is {}.", "My name is {}.", "I am {}.", "I'm {}.")).format(name))
    return Dialogue(tuple(facts), dialogue.turns, dialogue.partner_facts, name, dialogue.partner_name)


def with_questions(dialogue: Dialogue, rng: random.Random, *, num_questions: int, is_lower: bool) -> Dialogue:
    """Insert up to `num_questions` exchanges about the persona before user turns or at the end."""
    exchanges = [e for e in (_exchange(dialogue, rng) for _ in range(num_questions)) if e]
    turns = list(dialogue.turns)
    for question, answer in exchanges:
        if is_lower:
            question, answer = question.lower(), answer.lower()
        elif rng.random() < 0.4:
            question = question[:1].upper() + question[1:]
        places = [i for i, turn in enumerate(turns) if turn.role is Role.USER] + [len(turns)]
        if turns and turns[-1].role is Role.USER:
            places.pop()
        # Mostly early: chats begin with these questions.
        at = places[min(int(rng.random() ** 2 * len(places)), len(places) - 1)]
        turns[at:at] = [Turn(Role.USER, question), Turn(Role.BOT, answer)]
    return Dialogue(dialogue.facts, tuple(turns), dialogue.partner_facts, dialogue.name, dialogue.partner_name)


def _exchange(dialogue: Dialogue, rng: random.Random) -> tuple[str, str] | None:
    if dialogue.name and (not dialogue.facts or rng.random() < 0.3):
        return _name_exchange(dialogue.name, rng)
    facts = [fact for fact in dialogue.facts if not (dialogue.name and dialogue.name.lower() in fact.lower())]
    return _fact_exchange(rng.choice(facts), rng) if facts else None


def _name_exchange(name: str, rng: random.Random) -> tuple[str, str]:
    question = rng.choice(REACTIONS) + rng.choice(NAME_QUESTIONS).format(other=rng.choice(FIRST_NAMES))
    return _unpunctuated(question, rng), rng.choice(NAME_ANSWERS).format(name=name, first=name.split()[0])


def _fact_exchange(fact: str, rng: random.Random) -> tuple[str, str] | None:
    plain = fact.strip().rstrip(".!").strip()
    fitting = [(match, questions) for pattern, questions in _COMPILED if (match := pattern.match(plain.lower()))]
    if not fitting:
        return None
    # The first rule that fits is the most specific one; the catch-alls come last.
    match, questions = fitting[0] if rng.random() < 0.85 else rng.choice(fitting)
    question = rng.choice(REACTIONS) + rng.choice(questions).format(*(_second_person(g) for g in match.groups(default="")))
    opening = rng.choice(("", "", "", "", "Well, ", "Yes, ", "Oh, ")) if not question.startswith(("what", "who", "where")) else ""
    said = plain if not opening or plain.startswith(("I ", "I'")) else plain[:1].lower() + plain[1:]
    answer = f"{opening}{said}{rng.choice(('.', '.', '.', '!'))}{rng.choice(TAILS)}"
    return _unpunctuated(question, rng), answer


def _second_person(text: str) -> str:
    words: Sequence[str] = text.split()
    swap = {"my": "your", "i": "you", "me": "you", "am": "are", "myself": "yourself", "our": "your"}
    return " ".join(swap.get(word, word) for word in words)


def _unpunctuated(question: str, rng: random.Random) -> str:
    return question.rstrip("?") if rng.random() < 0.2 else question

"""What a person who wrote a wrong persona file is told."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personas.persona import Persona
from personas.yaml_file import MAX_BYTES, Source, parse, read, validated


def told(text: str) -> list[str]:
    source = parse(text, Source("p.yaml"))
    assert validated(source, Persona) is None
    return [str(problem) for problem in source.sorted_problems()]


def test_a_good_file_becomes_a_persona() -> None:
    source = parse("name: Zed\nfacts:\n  - I am Zed.\ngeneration: {top_p: 0.9, seed: 1}\n", Source("p.yaml"))
    persona = validated(source, Persona)
    assert persona is not None
    assert persona.facts == ("I am Zed.",)
    assert persona.generation.top_p == 0.9


def test_every_problem_is_told_with_its_line_in_order() -> None:
    text = """\
name: Zed
colour: red
facts:
  - I am nobody.
greeting: 42
examples:
  - user: Hi.
    bott: Ho.
generation:
  temprature: 1
  top_p: 3
  top_k: true
"""
    assert told(text) == [
        "p.yaml:2: colour: unknown field; expected one of name, description, facts, greeting, examples, avatar, "
        "generation, checkpoint",
        "p.yaml:3: facts: expected one of the facts to say the name, such as 'My name is Zed.'",
        "p.yaml:5: greeting: expected text, got the number 42; put it in quotes",
        "p.yaml:7: examples[1].bot: expected, but it is missing",
        "p.yaml:8: examples[1].bott: unknown field; did you mean bot?",
        "p.yaml:10: generation.temprature: unknown field; did you mean temperature?",
        "p.yaml:11: generation.top_p: expected a value less than or equal to 1, got the number 3",
        "p.yaml:12: generation.top_k: expected a whole number, got true",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: Zed\nname: Zed\n", "p.yaml:2: name: expected once, but it stands on line 1 too"),
        ("facts: []\n", "p.yaml:1: name: expected, but it is missing"),
        ("name: 1984\n", "p.yaml:1: name: expected text, got the number 1984; put it in quotes"),
        ("name: ''\n", "p.yaml:1: name: expected some text, got none"),
        ("name: Zed\nfacts: I am Zed.\n", "p.yaml:2: facts: expected a list ('- one' on a line each), got the text"),
        ("name: Zed\nfacts:\n", "p.yaml:2: facts: expected a list ('- one' on a line each), got nothing"),
        ("name: Zed\nfacts:\n  - I am Zed.\n  - I like: tea\n", "p.yaml:4: facts[2]: expected text, got fields; put"),
        (f"name: Zed\nfacts: [I am Zed., {'x' * 301}]\n", "facts[2]: expected at most 300 characters, got 301"),
        (f"name: {'x' * 81}\n", "p.yaml:1: name: expected at most 80 characters, got 81"),
        ('name: "a\\nb"\n', "p.yaml:1: name: expected one line without control characters"),
        ("name: Zed\ngeneration: 3\n", "generation: expected fields such as 'name: value', got the number 3"),
        ("name: Zed\ngeneration: {do_sample: 'yes'}\n", "do_sample: expected true or false, got the text 'yes'"),
        ("name: Zed\ngeneration: {top_p: 0x_}\n", "generation.top_p: expected a number, got the text '0x_'"),
        ("name: Zed\ngeneration: {top_p: .nan}\n", "generation.top_p: expected a"),
        ("name: &n Zed\navatar: *n\n", "p.yaml:2: avatar: expected the value itself, got a reference to an anchor"),
        ("name: &n {a: *n}\n", "p.yaml:1: name.a: expected the value itself"),
        ("name: Zed\navatar: !!python/name:os.system ''\n", "p.yaml:2: avatar: expected a plain value, got the tag"),
        ("name: Zed\n? [a]\n: b\n", "p.yaml:1: expected a field name, got a list"),
        ("", "p.yaml:1: expected fields such as 'name: value' (name, "),
        ("just text", "got the text 'just text'"),
        ("- a\n- b\n", "got a list"),
        ("name: a: b\n", "p.yaml:1: not YAML: mapping values are not allowed here; put text that contains ': '"),
        ("name: Zed\nfacts: ['I am\n", "not YAML: found unexpected end of stream"),
        ("name: Zed\n---\nname: Two\n", "p.yaml:2: not YAML: but found another document"),
        ("name: a\0b\n", "p.yaml: not YAML: unacceptable character"),
        ("[" * 20_000, "p.yaml: nested too deeply"),
    ],
)
def test_a_problem_says_where_and_what_was_expected(text: str, expected: str) -> None:
    assert any(expected in line for line in told(text)), told(text)


def test_a_date_is_text() -> None:
    persona = validated(parse("name: Zed\ngreeting: 2024-01-01\n", Source("p.yaml")), Persona)
    assert persona is not None
    assert persona.greeting == "2024-01-01"


def test_a_file_in_another_encoding_is_refused_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes("name: Zed\ngreeting: schön\n".encode("latin-1"))
    assert [str(problem) for problem in read(path).problems] == [
        f"{path}:2: expected UTF-8 text, got the byte 0xf6; save the file as UTF-8"
    ]


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("name: Zed\n", encoding="utf-8-sig")
    assert validated(read(path), Persona) == Persona(name="Zed")


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    assert "expected at most 256 KiB" in str(read(path).problems[0])


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert "not readable" in str(read(tmp_path).problems[0])


@given(st.text(alphabet=st.sampled_from(list("ab:-[]{}&*!|>'\"#?, \n\t0.~%@x")), max_size=60))
def test_any_text_becomes_a_persona_or_problems(text: str) -> None:
    source = parse(text, Source("p.yaml"))
    assert (validated(source, Persona) is None) == bool(source.problems)

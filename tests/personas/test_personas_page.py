"""docs/personas.md says what the code does."""

import re
from pathlib import Path

from personas.persona import GenerationSettings, Persona
from personas.yaml_file import Source, parse, validated

PAGE = (Path(__file__).parents[2] / "docs" / "personas.md").read_text(encoding="utf-8")


def _example() -> str:
    match = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert match
    return re.sub(r"^   ", "", match.group(1), flags=re.MULTILINE)


def test_the_example_is_a_good_file() -> None:
    source = parse(_example(), Source("nora.yaml"))
    persona = validated(source, Persona)
    assert source.problems == []
    assert persona is not None
    assert persona.name == "Nora Quist"


def test_every_field_is_described() -> None:
    described = re.findall(r"^\| `(\w+)` \| ", PAGE, re.MULTILINE)
    assert sorted(described) == sorted(Persona.model_fields)
    assert all(f"`{name}`" in PAGE for name in GenerationSettings.model_fields)


def test_the_problems_shown_are_those_told() -> None:
    broken = _example().replace("description:", "descripton:").replace("My name is Nora Quist.", "My name is: Nora")
    broken = broken.replace("  temperature: 0.7", "  top_p: 3")
    source = parse(broken, Source("my-personas/nora.yaml"))
    assert validated(source, Persona) is None
    block = re.search(r"what was expected:\n\n```\n(.*?)```", PAGE, re.DOTALL)
    assert block
    assert [str(problem) for problem in source.sorted_problems()] == block.group(1).splitlines()

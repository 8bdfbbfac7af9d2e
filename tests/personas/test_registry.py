"""The registry: what is added stays as it was, one version is current, and nothing in use is deleted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from personas import leases
from personas.checkpoint import Description, write_description
from personas.errors import CheckpointError, CheckpointRefused, RegistryError
from personas.lineage import Figure, Lineage, Verdict
from personas.registry import SHIPPED, Registry, Version
from tests.helpers.bare_checkpoint import bare_checkpoint


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    bare_checkpoint(tmp_path / "models" / "starter", "shipped")
    return Registry(tmp_path / "checkpoints", shipped=tmp_path / "models")


@pytest.fixture
def add(registry: Registry, tmp_path: Path) -> Callable[..., Version]:
    def add(content: str, name: str = "ada", lineage: Lineage | None = None) -> Version:
        folder = bare_checkpoint(tmp_path / "runs" / name / content, content)
        return registry.add(folder, name, lineage)

    return add


Add = Callable[..., Version]
REFUSED = Verdict(figures=(Figure(name="bpb_new", value=2.0, limit=1.5, unit="bits per byte"),))


def test_versions_are_numbered_and_carry_their_digest(registry: Registry, add: Add) -> None:
    one, two = add("one"), add("two")
    assert [one.version, two.version] == [f"0001-{one.digest}", f"0002-{two.digest}"]
    assert one.digest != two.digest
    assert [each.is_current for each in registry.versions("ada")] == [False, False]
    assert registry.names() == ["ada", "starter"]


def test_the_same_content_again_is_the_same_version(registry: Registry, add: Add, tmp_path: Path) -> None:
    one = add("one")
    assert registry.add(tmp_path / "runs/ada/one", "ada") == one
    other = bare_checkpoint(tmp_path / "other", "one")
    write_description(other, Description(kind="full", generation={"temperature": 0.3}))  # type: ignore[arg-type]
    assert registry.add(other, "ada").sequence == 2


def test_a_reference_is_a_name_a_version_or_the_beginning_of_a_digest(registry: Registry, add: Add) -> None:
    one, two = add("one"), add("two")
    registry.promote("ada@2")
    wanted = {"ada": two, "ada@1": one, f"ada@{one.version}": one, f"ada@{one.digest[:6]}": one}
    for reference, version in wanted.items():
        assert registry.version(reference).version == version.version
    for unknown, says in {"eve": "ada, starter", "ada@3": one.version, "../ada": "no checkpoint called"}.items():
        with pytest.raises(RegistryError, match=says):
            registry.version(unknown)


def test_a_name_without_a_promotion_has_no_current_version(registry: Registry, add: Add) -> None:
    add("one")
    with pytest.raises(RegistryError, match="promote one of 0001-"):
        registry.served("ada")


def test_promotions_are_taken_back_one_by_one(registry: Registry, add: Add) -> None:
    for content in ("one", "two", "three"):
        registry.promote(add(content).reference, by="ann")
    assert registry.rollback("ada", by="bob").sequence == 2
    assert registry.rollback("ada").sequence == 1
    with pytest.raises(RegistryError, match="no earlier version"):
        registry.rollback("ada")
    pointer = registry.pointer("ada")
    assert [(each.by, each.version[:4]) for each in pointer.rolled_back] == [("bob", "0003"), ("", "0002")]
    assert registry.version("ada").sequence == 1


def test_a_shipped_model_is_a_read_only_version_that_a_rollback_returns_to(registry: Registry, add: Add) -> None:
    assert registry.served("starter").version == SHIPPED
    assert registry.promote(add("one", "starter").reference).version.startswith("0001-")
    assert registry.served("starter").sequence == 1
    assert registry.rollback("starter").is_shipped
    with pytest.raises(RegistryError, match="no earlier version"):
        registry.rollback("starter")
    with pytest.raises(RegistryError, match="read-only"):
        registry.record("starter@shipped", metrics={})
    assert registry.promote("starter@shipped").is_shipped


def test_what_the_gate_refused_is_kept_and_not_served(registry: Registry, add: Add) -> None:
    add("one", lineage=Lineage(verdict=REFUSED))
    with pytest.raises(CheckpointRefused, match=r"bpb_new 2 bits per byte, expected at most 1\.5"):
        registry.promote("ada@1", by="ann")
    with pytest.raises(CheckpointRefused):
        registry.served("ada@1")
    assert registry.version("ada@1").folder.is_dir()


def test_what_its_job_left_before_the_gate_had_judged_it_is_not_served_either(registry: Registry, add: Add) -> None:
    version = add("one", lineage=Lineage(job="12345678"))
    assert version.lineage.judgement == "not judged"
    with pytest.raises(CheckpointRefused, match="is not judged by the gate and kept for a look only: its job ended"):
        registry.promote("ada@1", by="ann")
    good = Verdict(figures=(Figure(name="bpb_new", value=1.0, limit=1.5),))
    registry.record("ada@1", verdict=good)
    assert registry.promote("ada@1").lineage.judgement == "accepted"
    add("two", lineage=Lineage(job="23456789"))
    assert registry.promote("ada@2", by="owner", is_forced=True).lineage.forced_by == "owner"


def test_force_promotes_what_was_refused_and_is_recorded(registry: Registry, add: Add) -> None:
    add("one", lineage=Lineage(verdict=REFUSED))
    registry.promote("ada@1", by="owner", is_forced=True)
    version = registry.served("ada")
    assert version.lineage.forced_by == "owner"
    assert version.lineage.verdict == REFUSED


def test_a_verdict_and_metrics_may_be_recorded_later(registry: Registry, add: Add) -> None:
    before = add("one", lineage=Lineage(base="starter@shipped", data={"a.jsonl": "00"}, by="ann"))
    registry.record("ada@1", metrics={"loss": 2.5, "ppl": float("inf")}, digest="forged")
    after = registry.version("ada@1")
    assert after.lineage.metrics == {"loss": 2.5, "ppl": "Infinity"} or after.lineage.metrics["ppl"] == float("inf")
    assert (after.lineage.base, after.lineage.by, after.digest) == ("starter@shipped", "ann", before.digest)


def cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def no_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"<html>not found</html>")


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (cut_off, r"model\.safetensors is damaged or cut off: \d+ bytes long, expected \d+"),
        (no_header, "its header can't be read"),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"tokenizer\.json missing"),
        (lambda folder: (folder / "checkpoint.json").write_text('{"format": 7}'), "format"),
    ],
)
def test_a_damaged_folder_is_not_added(
    registry: Registry, tmp_path: Path, harm: Callable[[Path], None], says: str
) -> None:
    folder = bare_checkpoint(tmp_path / "new")
    harm(folder)
    with pytest.raises(CheckpointError, match=says):
        registry.add(folder, "ada")
    assert registry.names() == ["starter"]
    assert not list((tmp_path / "checkpoints").rglob(".incoming*"))


def test_a_version_that_was_changed_is_not_promoted(registry: Registry, add: Add) -> None:
    good, bad = add("one"), add("two")
    registry.promote(good.reference)
    weights = bad.folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3] + b"TWO")
    with pytest.raises(CheckpointError, match=r"model\.safetensors differs from what was added"):
        registry.promote(bad.reference)
    (good.folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is gone"):
        registry.verify("ada")
    assert registry.version("ada").version == good.version


@pytest.mark.parametrize("name", ["", ".hidden", "../up", "a/b", "a@b", "x" * 65])
def test_a_name_that_is_no_plain_file_name_is_refused(registry: Registry, tmp_path: Path, name: str) -> None:
    with pytest.raises(RegistryError, match="can't be a checkpoint's name"):
        registry.add(bare_checkpoint(tmp_path / "new"), name)


def test_prune_keeps_the_newest_the_current_the_one_before_it_and_what_is_used(registry: Registry, add: Add) -> None:
    versions = [add(f"content {number}") for number in range(8)]
    registry.promote("ada@1")
    registry.promote("ada@2")
    leases.hold(registry.folder, "host:1", ["ada@" + versions[3].version])
    add("voice", "voice", Lineage(base=versions[4].reference))
    gone = registry.prune("ada", keep=2)
    assert [version.sequence for version in gone] == [3, 6]
    assert [version.sequence for version in registry.versions("ada")] == [1, 2, 4, 5, 7, 8]
    assert not any(version.folder.exists() for version in gone)
    assert registry.rollback("ada").sequence == 1


def test_prune_keeps_what_somebody_pinned_by_any_name_for_it(registry: Registry, add: Add) -> None:
    versions = [add(f"content {number}") for number in range(5)]
    pinned = ["ada@2", f"ada@{versions[3].digest[:8]}", "ada", "ada@9", "eve@1", "no/such/folder"]
    assert [version.sequence for version in registry.prune("ada", keep=0, pinned=pinned)] == [1, 3, 5]


def test_the_lease_of_a_dead_process_holds_nothing(registry: Registry, add: Add) -> None:
    add("one"), add("two")
    leases.hold(registry.folder, "host:1", ["ada@0001"])
    [file] = (registry.folder / leases.FOLDER).iterdir()
    assert leases.held_versions(registry.folder) == {"ada@0001": ["host:1"]}
    long_ago = file.stat().st_mtime - leases.LEASE_S - 1
    os.utime(file, (long_ago, long_ago))
    assert leases.held_versions(registry.folder) == {}
    leases.release(registry.folder, "host:1")


def test_a_name_may_be_chosen_to_be_served_by_default(registry: Registry, add: Add) -> None:
    assert registry.chosen() is None
    registry.promote(add("one").reference)
    registry.choose("ada", by="ann")
    assert registry.chosen() == "ada"
    with pytest.raises(RegistryError, match="no checkpoint called 'eve'"):
        registry.choose("eve")


def test_many_who_add_at_once_get_a_version_each(registry: Registry, tmp_path: Path) -> None:
    folders = [bare_checkpoint(tmp_path / "runs" / str(number), f"content {number}") for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda folder: registry.add(folder, "ada"), folders))
    assert sorted(version.sequence for version in versions) == list(range(1, 9))


def test_a_damaged_record_is_named(registry: Registry, add: Add) -> None:
    version = add("one")
    (version.folder / "lineage.json").write_text('{"format": 2}')
    with pytest.raises(RegistryError, match=r"lineage\.json: format"):
        registry.versions("ada")


def test_the_registry_needs_neither_torch_nor_tokenizers() -> None:
    code = "import sys, personas.registry; sys.exit(bool({'torch', 'tokenizers', 'fsspec'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_folder_that_somebody_removed_is_no_version(registry: Registry, add: Add) -> None:
    registry.promote(add("one").reference)
    registry.promote(add("two").reference)
    shutil.rmtree(registry.version("ada@2").folder)
    with pytest.raises(RegistryError, match="no current version"):
        registry.served("ada")
    assert registry.rollback("ada").sequence == 1

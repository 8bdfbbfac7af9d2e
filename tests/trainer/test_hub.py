"""A checkpoint goes to the hub with a card that the hub reads; against a small server that speaks its interface."""

from __future__ import annotations

import base64
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from personas.checkpoint import read_checkpoint
from tests.helpers.cli import personabot
from tests.helpers.tiny_model import tiny_checkpoint
from tests.trainer.test_run import command, run_to_end
from trainer.card import write_metrics
from trainer.hub import front_matter, staged_copy


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload of small files needs; keeps what it was sent."""

    requests: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.requests.append((self.path, body))
        if self.path.endswith("/preupload/main"):
            files = [entry["path"] for entry in json.loads(body)["files"]]
            self._answer({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]})
        elif self.path.endswith("/repos/create"):
            self._answer({"url": f"http://{self.headers['Host']}/me/mine", "id": "me/mine"})
        elif self.path.endswith("/commit/main"):
            self._answer(
                {"commitUrl": f"http://{self.headers['Host']}/me/mine/commit/{'0' * 40}", "commitOid": "0" * 40}
            )
        else:
            self._answer({"errors": [], "warnings": []})

    def do_GET(self) -> None:
        self._answer({"id": "me/mine", "sha": "0" * 40, "siblings": []})

    def _answer(self, data: object) -> None:
        body = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    Hub.requests = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tiny_checkpoint(tmp_path / "tiny")
    (path / "README.md").write_text("# tiny\n", encoding="utf-8")
    write_metrics(path, {"evaluation": {"valid.txt": {"ppl_word": 20.5, "bpb": 1.25}}})
    return path


def test_a_checkpoint_is_uploaded_whole_with_its_card(folder: Path, home: Path, hub: ThreadingHTTPServer) -> None:
    environment = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_TOKEN": "hf_test",
        "HF_HUB_DISABLE_XET": "1",
    }
    done = personabot("publish", folder, "me/mine", "--licence", "mit", home=home, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("/me/mine")
    (body,) = [body for path, body in Hub.requests if path.endswith("/commit/main")]
    entries = [json.loads(line) for line in body.decode().splitlines()]
    files = {e["value"]["path"]: base64.b64decode(e["value"]["content"]) for e in entries if e["key"] == "file"}
    assert files.keys() == {path.name for path in folder.iterdir()}
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert b"license: mit" in files["README.md"]


def test_of_several_processes_that_train_only_the_first_uploads(tmp_path: Path, hub: ThreadingHTTPServer) -> None:
    run_to_end(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *(*command(tmp_path / "run", dropout=0.0)[1:], "--train-tokens", "500", "--push-to-hub", "me/mine"),
        ],
        HF_ENDPOINT=f"http://127.0.0.1:{hub.server_port}",
        HF_TOKEN="hf_test",
        HF_HUB_DISABLE_XET="1",
    )
    assert [path.rpartition("/")[2] for path, _ in Hub.requests].count("create") == 1


def test_the_cards_head_is_what_the_hub_reads(folder: Path) -> None:
    head = front_matter(read_checkpoint(folder), "HuggingFaceTB/SmolLM2-135M-Instruct", "mit")
    data = YAML(typ="safe").load(head.split("---")[1])
    assert data["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert data["library_name"] == "transformers"
    (result,) = data["model-index"][0]["results"]
    assert [metric["value"] for metric in result["metrics"]] == [20.5, 1.25]


def test_an_adapter_names_its_base_as_the_hub_does(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[2] / "models" / "smollm2-persona"
    staged = staged_copy(read_checkpoint(shipped), tmp_path / "staged")
    config = json.loads((staged / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "library_name: peft" in (staged / "README.md").read_text()
    assert (
        json.loads((shipped / "adapter_config.json").read_text())["base_model_name_or_path"] == "smollm2-135m-instruct"
    )


def test_without_a_network_it_says_that_nothing_is_lost(folder: Path, home: Path) -> None:
    done = personabot("publish", folder, "me/mine", home=home, HF_ENDPOINT="http://127.0.0.1:9", HF_TOKEN="hf_test")
    assert done.returncode == 1
    assert "not uploaded to the Hugging Face hub" in done.stderr
    assert f"personabot publish {folder} me/mine" in done.stderr
    assert "Traceback" not in done.stderr

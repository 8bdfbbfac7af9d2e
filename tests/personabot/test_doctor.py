"""`personabot doctor`: what it says of this machine and of two platforms that answer, refuse or are not there."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from personabot.doctor import examine, find
from personabot.findings import Status
from personabot.platform_checks import MESSAGE_CONTENT, check_discord, check_telegram
from personas.settings import Settings, load_settings
from tests.helpers.cli import personabot

TELEGRAM = "123:good"


class Platforms(BaseHTTPRequestHandler):
    """Discord's and Telegram's answers about one good token each."""

    flags = 0
    reads_all = False

    def do_GET(self) -> None:
        telegram = {
            f"/bot{TELEGRAM}/getMe": {"username": "ada_bot", "can_read_all_group_messages": self.reads_all},
            f"/bot{TELEGRAM}/getWebhookInfo": {"url": ""},
        }
        discord = {
            "/api/v10/users/@me": {"username": "Ada"},
            "/api/v10/applications/@me": {"flags": self.flags},
        }
        if self.path in telegram:
            self._answer(200, {"ok": True, "result": telegram[self.path]})
        elif self.headers.get("Authorization") == "Bot good":
            self._answer(200, discord[self.path])
        else:
            self._answer(401, {"message": "401: Unauthorized"})

    def _answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def platforms(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Platforms, "flags", 0)
    monkeypatch.setattr(Platforms, "reads_all", False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Platforms) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def settings_for(url: str, token: str) -> Settings:
    return load_settings(discord_token=token, telegram_token=token, discord_api=f"{url}/api", telegram_api=url)


def test_a_good_discord_token_without_the_intent_is_a_note(platforms: str) -> None:
    token, intents = check_discord(settings_for(platforms, "good"))
    assert (token.status, token.text) == (Status.OK, "the token is good: Ada")
    assert intents.status is Status.NOTE
    assert "Message Content Intent" in intents.mend


def test_the_message_content_intent_is_seen(platforms: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Platforms, "flags", MESSAGE_CONTENT)
    assert check_discord(settings_for(platforms, "good"))[1].status is Status.OK


def test_privacy_mode_is_a_note_and_its_end_is_seen(platforms: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [finding.status for finding in check_telegram(settings_for(platforms, TELEGRAM))] == [Status.OK, Status.NOTE]
    monkeypatch.setattr(Platforms, "reads_all", True)
    assert [finding.status for finding in check_telegram(settings_for(platforms, TELEGRAM))] == [Status.OK, Status.OK]


@pytest.mark.parametrize("check", [check_discord, check_telegram])
def test_a_refused_token_is_a_problem_and_not_shown(platforms: str, check: object) -> None:
    (finding,) = check(settings_for(platforms, "99:secret"))  # type: ignore[operator]
    assert finding.status is Status.PROBLEM
    assert "the token was refused" in finding.text
    assert "secret" not in str(finding)


@pytest.mark.parametrize("check", [check_discord, check_telegram])
def test_an_unreachable_platform_is_told_from_a_refused_token(check: object) -> None:
    (finding,) = check(settings_for("http://127.0.0.1:9", "99:secret"))  # type: ignore[operator]
    assert finding.status is Status.PROBLEM
    assert "could not reach" in finding.text
    assert "secret" not in str(finding)


def test_nothing_is_wrong_without_tokens(home: Path, tiny_model: Path) -> None:
    done = personabot("doctor", home=home, PERSONABOT_MODEL=str(tiny_model))
    assert done.returncode == 0, done.stdout
    for part in ("python", "redis", "model", "device", "discord", "telegram", "disk"):
        assert f" {part} " in done.stdout
    assert "Nothing to mend." in done.stdout


@pytest.mark.parametrize(
    ("part", "extra", "said"),
    [
        ("model", {"PERSONABOT_MODEL": "no/such/model/folder"}, "no/such/model/folder"),
        ("redis", {"REDIS_URL": "redis://:secret@127.0.0.1:9/0"}, "could not reach redis://***@127.0.0.1:9/0"),
        ("device", {"PERSONABOT_DEVICE": "cuda:7"}, "torch sees"),
        ("engine", {"PERSONABOT_ENGINE": "vllm"}, "docs/engine.md"),
        ("trackers", {"PERSONABOT_TRAINING_TRACK": "comet"}, "pip install 'personabot[comet]'"),
        ("personas", {"PERSONABOT_DEFAULT_PERSONA": "Nobody At All"}, "Nobody At All"),
        ("python", {"PERSONABOT_DEVCE": "cpu"}, "did you mean PERSONABOT_DEVICE"),
    ],
)
def test_what_is_misconfigured_is_named_and_fails(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    part: str,
    extra: dict[str, str],
    said: str,
) -> None:
    for name, value in {"PERSONABOT_DATA_DIR": str(home), "COLUMNS": "200", **extra}.items():
        monkeypatch.setenv(name, value)
    for missing in ("vllm", "comet_ml"):
        monkeypatch.setitem(sys.modules, missing, None)
    assert examine([part]) == 1
    printed = "".join(capsys.readouterr())
    assert said in printed
    assert "secret" not in printed


def test_a_damaged_model_is_a_problem_of_the_model(
    home: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = home / "broken"
    shutil.copytree(tiny_model, broken)
    (broken / "model.safetensors").unlink()
    monkeypatch.setenv("PERSONABOT_MODEL", str(broken))
    (finding,) = [found for found in find(["model"]) if found.part == "model"]
    assert finding.status is Status.PROBLEM
    assert "model.safetensors missing" in finding.text

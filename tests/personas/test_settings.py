"""Settings: precedence, unknown keys, secrets."""

import os
from pathlib import Path

import pytest

from personas.errors import SettingsError
from personas.settings import load_settings


@pytest.fixture(autouse=True)
def bare_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PERSONABOT_") or name in ("DISCORD_TOKEN", "TELEGRAM_TOKEN", "REDIS_URL"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_defaults_need_no_set_up() -> None:
    settings = load_settings()
    assert settings.redis_url is None
    assert settings.discord_token is None
    assert settings.model == ""


def test_flag_beats_environment_beats_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("personabot.toml").write_text('model = "file"\ndevice = "cpu"\n[generation]\ntop_p = 0.5\ntop_k = 7\n')
    monkeypatch.setenv("PERSONABOT_MODEL", "environment")
    monkeypatch.setenv("PERSONABOT_GENERATION__TOP_P", "0.8")
    assert load_settings().model == "environment"
    assert load_settings(model="flag").model == "flag"
    settings = load_settings(model=None)
    assert (settings.device, settings.generation.top_p, settings.generation.top_k) == ("cpu", 0.8, 7)


def test_customary_names_work_and_ours_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISCORD_TOKEN", "customary")
    monkeypatch.setenv("REDIS_URL", "redis://host/1")
    settings = load_settings()
    assert settings.discord_token is not None
    assert settings.discord_token.get_secret_value() == "customary"
    assert settings.redis_url == "redis://host/1"
    monkeypatch.setenv("PERSONABOT_DISCORD_TOKEN", "ours")
    token = load_settings().discord_token
    assert token is not None
    assert token.get_secret_value() == "ours"


def test_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISCORD_TOKEN", "")
    monkeypatch.setenv("PERSONABOT_DTYPE", "")
    settings = load_settings()
    assert settings.discord_token is None
    assert settings.dtype == "auto"


def test_unknown_key_in_file_names_the_file_and_the_closest_setting() -> None:
    Path("personabot.toml").write_text('modle = "x"\n')
    with pytest.raises(SettingsError, match=r"personabot\.toml: modle is not a setting \(did you mean model\?\)"):
        load_settings()


def test_unknown_generation_key_names_the_closest() -> None:
    Path("personabot.toml").write_text("[generation]\ntemprature = 1.0\n")
    with pytest.raises(SettingsError, match=r"generation\.temprature is not a setting \(did you mean temperature\?\)"):
        load_settings()


def test_unknown_environment_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSONABOT_DISCORD_TOKN", "x")
    with pytest.raises(SettingsError, match=r"PERSONABOT_DISCORD_TOKN .*did you mean PERSONABOT_DISCORD_TOKEN"):
        load_settings()


def test_unknown_nested_environment_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSONABOT_GENERATION__TOPP", "0.5")
    with pytest.raises(SettingsError, match=r"environment: PERSONABOT_GENERATION__TOPP .*did you mean top_p"):
        load_settings()


def test_all_problems_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("personabot.toml").write_text('max_num_seqs = 0\ndevice = "gpu"\n')
    monkeypatch.setenv("PERSONABOT_NONSENSE", "1")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    message = str(caught.value)
    assert "PERSONABOT_NONSENSE" in message
    assert "personabot.toml: max_num_seqs: " in message
    assert "personabot.toml: device: " in message


def test_bad_toml_names_the_line() -> None:
    Path("personabot.toml").write_text("a = 1\nb = = 2\n")
    with pytest.raises(SettingsError, match="line 2"):
        load_settings()


def test_a_named_settings_file_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSONABOT_CONFIG", "elsewhere.toml")
    with pytest.raises(SettingsError, match=r"no file elsewhere\.toml"):
        load_settings()


def test_secrets_show_nowhere() -> None:
    settings = load_settings(
        discord_token="s3cret", telegram_token="s3cret", redis_url="redis://user:s3cret@host:6379/0"
    )
    assert "s3cret" not in repr(settings)
    assert "s3cret" not in str(settings.shown())
    assert settings.shown()["redis_url"] == "redis://***@host:6379/0"


def test_base_urls_take_either_spelling() -> None:
    assert load_settings().discord_root == "https://discord.com/api/v10"
    assert load_settings(discord_api="http://127.0.0.1:1/api/v10/").discord_root == "http://127.0.0.1:1/api/v10"
    assert load_settings(telegram_api="http://127.0.0.1:1/bot").telegram_root == "http://127.0.0.1:1/bot"

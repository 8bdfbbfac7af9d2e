"""The settings page says what the settings are."""

from pathlib import Path

from personabot.settings_docs import table


def test_the_settings_page_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "settings.md"
    assert page.read_text(encoding="utf-8") == table(), "run: python -m personabot.settings_docs > docs/settings.md"

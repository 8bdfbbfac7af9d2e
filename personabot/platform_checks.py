"""Doctor's questions to Discord and Telegram: is the token good, and does the bot receive what it needs?

Asks the base URLs of the settings with short timeouts. A token never appears in a finding.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any, Final

from personabot.findings import Finding, note, ok, problem
from personas.settings import Settings

TIMEOUT_S: Final = 5.0
USER_AGENT: Final = "DiscordBot (https://pypi.org/project/personabot, 0.1)"
# Application flags (developer documentation, "Application Flags"): granted by review, or switched on while small.
MESSAGE_CONTENT: Final = (1 << 18) | (1 << 19)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a platform answered; status 0: it could not be reached, and `why` says so."""

    status: int
    body: dict[str, Any]
    why: str = ""


def get_json(url: str, headers: dict[str, str] | None = None) -> Answer:
    """Fetch a JSON object; refusals and unreachable hosts are answers, not exceptions."""
    request = urllib.request.Request(url, headers={"User-Agent": USER_AGENT, **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            return Answer(response.status, _object(response.read()))
    except urllib.error.HTTPError as error:
        return Answer(error.code, _object(error.read()))
    except urllib.error.URLError as error:
        return Answer(0, {}, str(error.reason))
    except (OSError, ValueError, http.client.HTTPException) as error:
        return Answer(0, {}, type(error).__name__)


def check_discord(settings: Settings) -> list[Finding]:
    """Check the token, and whether the bot may read messages that do not mention it."""
    if settings.discord_token is None:
        return [note("discord", "no token: left out", "set DISCORD_TOKEN to speak on Discord")]
    headers = {"Authorization": f"Bot {settings.discord_token.get_secret_value()}"}
    me = get_json(f"{settings.discord_root}/users/@me", headers)
    if failure := _refused_or_unreachable("discord", settings.discord_root, me, "https://discord.com/developers"):
        return [failure]
    findings = [ok("discord", f"the token is good: {me.body.get('username', 'unnamed')}")]
    application = get_json(f"{settings.discord_root}/applications/@me", headers)
    if application.status == 200 and int(application.body.get("flags", 0)) & MESSAGE_CONTENT:
        findings.append(ok("intents", "message content is on: the bot can answer everything in a channel"))
    elif application.status == 200:
        findings.append(
            note(
                "intents",
                "message content is off: the bot sees mentions, replies with a mention, DMs and slash commands",
                "to answer all of a channel: developer portal, Bot, Message Content Intent",
            )
        )
    return findings


def check_telegram(settings: Settings) -> list[Finding]:
    """Check the token, privacy mode, and whether a webhook keeps updates from us."""
    if settings.telegram_token is None:
        return [note("telegram", "no token: left out", "set TELEGRAM_TOKEN to speak on Telegram")]
    root = settings.telegram_root + settings.telegram_token.get_secret_value()
    me = get_json(f"{root}/getMe")
    if failure := _refused_or_unreachable("telegram", settings.telegram_api, me, "@BotFather"):
        return [failure]
    user = me.body.get("result") or {}
    findings = [ok("telegram", f"the token is good: @{user.get('username', 'unnamed')}")]
    if user.get("can_read_all_group_messages"):
        findings.append(ok("privacy", "privacy mode is off: the bot sees every message in its groups"))
    else:
        findings.append(
            note(
                "privacy",
                "privacy mode is on: in groups the bot sees commands and replies to it, but not @mentions",
                "@BotFather, /setprivacy, Disable; then remove the bot from the group and add it again",
            )
        )
    if not user.get("can_join_groups", True):
        findings.append(note("telegram", "the bot may not join groups", "@BotFather, /setjoingroups, Enable"))
    webhook = get_json(f"{root}/getWebhookInfo").body.get("result") or {}
    if webhook.get("url"):
        findings.append(note("telegram", "a webhook is set; starting the bot removes it, since it polls"))
    return findings


def _refused_or_unreachable(part: str, url: str, answer: Answer, issuer: str) -> Finding | None:
    if answer.status == 200:
        return None
    if answer.status == 0:
        return problem(
            part, f"could not reach {url}: {answer.why}", "check the network, a proxy or firewall, and the URL"
        )
    if answer.status in (401, 403, 404):
        return problem(part, f"the token was refused ({answer.status})", f"take the current token from {issuer}")
    return problem(part, f"{url} answered {answer.status}", "try again in a minute; the platform may be down")


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}

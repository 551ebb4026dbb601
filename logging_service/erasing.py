"""Erases a subject once everything that was accepted before is stored."""

import asyncio
import hmac
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from logging_service.audit import Actor
from logging_service.backends import open_erasure, redaction_rules_of
from logging_service.erasure import Erased, Kind, Subject
from logging_service.errors import EventsWait
from logging_service.facts import facts_of
from logging_service.pepper import kept_pii_key
from logging_service.ports import EventQueue
from logging_service.redaction import Redacted, Redactor, Rules
from logging_service.settings import Settings

_POLL_SECONDS: Final = 0.1
# Producers, queue and this process may each have a clock of their own.
_CLOCKS_DIFFER: Final = timedelta(seconds=1)


def subject_of(settings: Settings, kind: Kind, text: str, project: str | None) -> Subject:
    """Return the subject with this id, in all the ways in which redaction lets it be stored.

    Raises SettingsError where the key of redaction cannot be had.
    """
    rules, key = redaction_rules_of(settings), kept_pii_key(settings)
    redactor = Redactor(rules, key)
    texts = [text, *(one.decode() for one in _of_one_id(rules, redactor.text(text.encode())))]
    if kind == "user":
        sent = [msgspec.json.encode({name: text}) for name in ("user_id", "user.id")]
        stored = [one for payload in sent for one in _of_one_id(rules, redactor.payload(payload))]
        payloads = [*sent, *stored]
        texts = [user for user, _, _ in facts_of(payloads) if user]
    named = f"erased {kind} {text}".encode()
    pseudonym = hmac.digest(key, named, "sha256").hex()[:16]
    return Subject(kind, tuple(dict.fromkeys(texts)), project, pseudonym)


def _of_one_id(rules: Rules, redacted: Redacted) -> list[bytes]:
    # A mask is the same for all ids, and so is what dropping leaves.
    is_one = all(rules.action_of(rule) == "hash" for rule in redacted.found)
    return [redacted.text] if is_one else []


async def erase(
    settings: Settings,
    queue: EventQueue,
    subject: Subject,
    actor: Actor,
    *,
    wait_seconds: float,
    advance: Callable[[int, int], None] = lambda _more, _of: None,
) -> Erased:
    """Erase a subject, and say how much that was.

    Events that were accepted before are waited for. Raises EventsWait when they are not stored by
    then, BackendUnavailable when the queue cannot be asked, or while another one corrects what was
    counted. A queue in a producer's memory cannot be asked, and is not.
    """
    if not settings.queue_is_memory:
        await _wait_until_stored(queue, wait_seconds)
    async with open_erasure(settings) as erasure:
        return await erasure.erase(subject, actor, advance)


async def _wait_until_stored(queue: EventQueue, wait_seconds: float) -> None:
    began, give_up = datetime.now(UTC) + _CLOCKS_DIFFER, time.monotonic() + wait_seconds
    while True:
        status = await queue.status()
        waiting = status.size + status.in_flight + status.spooled
        if not waiting or (status.held_since and status.held_since > began):
            return
        if time.monotonic() >= give_up:
            raise EventsWait(
                f"{waiting} events that were accepted before are not stored yet: nothing was erased"
            )
        await asyncio.sleep(_POLL_SECONDS)

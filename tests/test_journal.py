"""The journal of a review: what of it reaches the logging service, and what the caller notices."""

import threading
from collections.abc import Iterator

import pytest
from log_peer import Peer, recording_peer
from servers import unused_port

from gateway.journal import Journal
from logging_helper import backlog, flush, reset


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    with recording_peer(monkeypatch) as peer:
        yield peer


def a_journal(request_id: str | None = "request-1", user_id: str | None = "ada") -> Journal:
    return Journal("review-1", "session-1", request_id, user_id)


def test_every_event_names_session_request_review_and_user(peer: Peer) -> None:
    a_journal().emit("syntax_analysis_started", {"analysis_type": "lint"})
    assert peer.event() == {
        "event_type": "syntax_analysis_started",
        "session_id": "session-1",
        "request_id": "request-1",
        "payload": {
            "analysis_type": "lint",
            "user_id": "ada",
            "review_id": "review-1",
            "seq": 1,
            "schema_version": 1,
        },
    }


def test_events_are_numbered_with_the_one_that_leaves_another_way(peer: Peer) -> None:
    journal = a_journal()
    journal.emit("review_started", {})
    journal.emit("error_occurred", {})
    assert journal.numbered({"success": True})["seq"] == 3
    assert flush()
    assert [event["payload"]["seq"] for event in peer.events] == [1, 2]


def test_what_is_not_known_is_not_sent(peer: Peer) -> None:
    a_journal(request_id=None, user_id=None).emit("review_started", {"user_id": None})
    event = peer.event()
    assert "request_id" not in event
    assert event["payload"]["user_id"] is None


def test_a_payload_cannot_take_the_place_of_what_the_journal_says(peer: Peer) -> None:
    a_journal().emit("a", {"review_id": "another", "seq": 99, "schema_version": 0})
    said = peer.event()["payload"]
    assert (said["review_id"], said["seq"], said["schema_version"]) == ("review-1", 1, 1)


def test_an_event_is_no_io_of_the_caller(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    senders: set[str] = set()
    connect = peer.server.socket.__class__.connect

    def noted(socket: object, address: object) -> None:
        senders.add(threading.current_thread().name)
        connect(socket, address)  # type: ignore[arg-type]

    monkeypatch.setattr("socket.socket.connect", noted)
    a_journal().emit("a", {})
    assert flush()
    assert senders == {"logging_helper"}


def test_a_service_that_is_away_is_neither_waited_for_nor_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOGGING_ENABLED", "true")
    monkeypatch.setenv("LOGGING_SERVICE_URL", f"http://127.0.0.1:{unused_port()}/log")
    reset()
    journal = a_journal()
    for _ in range(100):
        journal.emit("a", {})
    waiting, lost = backlog()
    assert (waiting, lost) == (100, 0)
    reset()


def test_two_journals_keep_their_sessions_apart(peer: Peer) -> None:
    first, second = a_journal(), Journal("review-2", "session-2", None, None)
    first.emit("a", {})
    second.emit("b", {})
    first.emit("a", {})
    assert flush()
    told = [(event["session_id"], event["payload"]["seq"]) for event in peer.events]
    assert told == [("session-1", 1), ("session-2", 1), ("session-1", 2)]

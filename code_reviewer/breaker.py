"""Leaves a model alone that does not answer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from code_reviewer.models import ModelError

MOST_FAILURES: Final = 5
OPEN_SECONDS: Final = 30.0
_OPENS: Final = {"unauthorized", "not_found"}
# What one submission can bring about is not counted: it would close the model to all others.
_COUNTS: Final = {
    "timeout",
    "unreachable",
    "connection",
    "rate_limited",
    "server_error",
    "redirected",
    "unreadable",
}


class Breaker:
    """Opens for 30 s after five failures in a row, or one refused key; then lets one try.

    `clock` counts seconds and never goes back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures = 0
        self._open_until: float | None = None
        self._is_tried = False

    @property
    def is_open(self) -> bool:
        """Whether no attempt is let through now."""
        if self._open_until is None:
            return False
        return self._is_tried or self._clock() < self._open_until

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Let one attempt through and judge it by how it leaves; raises ModelError when open."""
        if self.is_open:
            raise ModelError("breaker", "the model failed too often; it is left alone for a while")
        is_trial = self._open_until is not None
        self._is_tried = is_trial or self._is_tried
        try:
            yield
        except ModelError as error:
            self._judge(error)
            raise
        else:
            self._close()
        finally:
            if is_trial:
                self._is_tried = False

    def _judge(self, error: ModelError) -> None:
        if error.kind in _OPENS:
            self._open()
        elif error.kind in _COUNTS:
            self._failures += 1
            if self._open_until is not None or self._failures >= MOST_FAILURES:
                self._open()
        elif error.http_status is not None:
            self._close()

    def _open(self) -> None:
        self._open_until = self._clock() + OPEN_SECONDS

    def _close(self) -> None:
        self._failures, self._open_until = 0, None

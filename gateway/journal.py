"""The events of a review on their way to the logging service, which nobody waits for."""

from collections.abc import Mapping
from itertools import count

from logging_helper import log_event, session

SCHEMA_VERSION = 1


class Journal:
    """Sends the events of one review, numbered from 1, in one session.

    Each payload says the review it belongs to and the user, each event the `request_id` under
    which the review was asked for. The service may be away: that is neither waited for nor raised.
    """

    def __init__(
        self, review_id: str, session_id: str, request_id: str | None, user_id: str | None
    ) -> None:
        self._session_id = session_id
        self._request_id = request_id
        self._user = {} if user_id is None else {"user_id": user_id}
        self._review_id = review_id
        self._numbers = count(1)

    def emit(self, event_type: str, payload: Mapping[str, object]) -> None:
        """Queue an event."""
        with session(self._session_id, self._request_id):
            log_event(event_type, payload=self.numbered(payload))

    def numbered(self, payload: Mapping[str, object]) -> dict[str, object]:
        """Return a payload with what makes it the review's next event."""
        return {
            **self._user,
            **payload,
            "review_id": self._review_id,
            "seq": next(self._numbers),
            "schema_version": SCHEMA_VERSION,
        }

"""What can go wrong, by who can mend it: the sender, the operator, or time."""


class LoggingServiceError(Exception):
    """The logging service could not do what was asked."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or type(self).__doc__)


class FieldRejected(LoggingServiceError):
    """A field holds what it may not hold; `loc` names it."""

    def __init__(self, loc: str, message: str) -> None:
        super().__init__(f"{loc}: {message}")
        self.loc = loc
        self.message = message


class EventRejected(FieldRejected):
    """The event can never be stored; do not send it again."""


class QueryRejected(FieldRejected):
    """The question cannot be answered as it was asked."""


class KeyRejected(FieldRejected):
    """The key cannot be made as it was described."""


class KeyConflict(LoggingServiceError):
    """The key, or the number of keys, does not allow this any more."""


class BodyRejected(LoggingServiceError):
    """The body cannot be read as a whole; nothing in it was taken."""


class BodyTooLarge(BodyRejected):
    """The body is larger than the service takes; send smaller batches."""


class BodyNotSupported(BodyRejected):
    """The body comes in a form that the service does not read."""


class BackendUnavailable(LoggingServiceError):
    """The queue or store did not answer; send it again later."""


class QueueFull(BackendUnavailable):
    """The queue holds as many events as it may; send them again later."""


class EventsWait(LoggingServiceError):
    """Events that were accepted before are not stored yet; ask again when they are."""


class DeliveryTooWide(LoggingServiceError):
    """The delivery's days need more locks at once than the database has; its events fit alone."""


class TooManyDead(LoggingServiceError):
    """So many of the last events cannot be stored that the fault is hardly theirs."""


class SchemaMismatch(LoggingServiceError):
    """The database's schema does not fit this release."""


class SettingsError(LoggingServiceError):
    """A setting cannot be used."""


class SchemaTooNew(SchemaMismatch):
    """The database's schema is newer than this release knows; run the release that made it."""


class Unauthenticated(LoggingServiceError):
    """A key is needed, as `X-API-Key: …` or `Authorization: Bearer …`."""


class Forbidden(LoggingServiceError):
    """The key is good, but it may not do this."""


class HeaderTooLarge(LoggingServiceError):
    """The request's header is larger than 16 KiB."""


class Misdirected(LoggingServiceError):
    """The Host header names no host of this service; ALLOWED_HOSTS lists further ones."""


class NotHttp(LoggingServiceError):
    """The request is not HTTP, or not HTTP that can be read in only one way."""


class TooSlow(LoggingServiceError):
    """The request took too long to arrive."""


class RateLimited(LoggingServiceError):
    """The key's limit is used up; `headers` say when it is not."""

    def __init__(self, message: str, headers: dict[str, str]) -> None:
        super().__init__(message)
        self.headers = headers


class TooManyReviews(RateLimited):
    """As many reviews wait as may; `headers` say when to send it again."""


class Stopping(BackendUnavailable):
    """The service ends and begins nothing new; send it again later."""


class ReviewRuns(LoggingServiceError):
    """The review that was asked for with this Idempotency-Key is not over yet."""

"""How the events of a review leave it."""

from collections.abc import Callable, Mapping

Emit = Callable[[str, Mapping[str, object]], None]
"""Takes an event's type and payload; it never raises and never waits."""

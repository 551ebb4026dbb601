"""Host names: which are this host's own, and for which of them a server answers."""

import re
from collections.abc import Iterable
from ipaddress import ip_address

_NAME = re.compile(r"(?:\*\.)?[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?(?:\.[a-z0-9_-]+)*")
_MOST_SEEN = 256
_LOOPBACK = "127.0.0.1"
_REACHED_AT = {"0.0.0.0": _LOOPBACK, "::": "::1", "localhost": _LOOPBACK}  # noqa: S104 - to ask there


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this host's own: `localhost`, 127.0.0.0/8 or ::1."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def reached_at(bound_to: str) -> str:
    """Return by which address this host reaches a server that is bound to `bound_to`.

    `localhost` by its number: what else the name leads to is not asked.
    """
    return _REACHED_AT.get(bound_to.lower(), bound_to)


def without_port(host: bytes) -> str:
    """Return the name or address in a Host header, "" where what follows it is no port."""
    text = host.decode("latin-1")
    name, colon, port = text.rpartition(":")
    if colon and not text.endswith("]"):
        text = name if port.isdecimal() and port.isascii() else ""
    return text[1:-1] if text.startswith("[") and text.endswith("]") else text


def read_host_names(text: str) -> tuple[str, ...]:
    """Read names and addresses separated by commas, `*.` before a name for all names below it.

    Raises ValueError for anything else, also for a port: any port is as good as another.
    """
    return tuple(_host_name(part.strip().lower()) for part in text.split(",") if part.strip())


def _host_name(text: str) -> str:
    try:
        return str(ip_address(text.removeprefix("[").removesuffix("]")))
    except ValueError:
        if _NAME.fullmatch(text):
            return text
    raise ValueError(f"{text!r} is no host name, without scheme and port, and no *.name")


class AllowedHosts:
    """Says whether a server that is bound to `bound_to` answers for a Host header.

    Against DNS rebinding: a page in a browser can have its own name point to this host, but not
    send another name. Loopback names are always this host; on any other address, without `names`,
    every name is allowed.
    """

    def __init__(self, bound_to: str, names: Iterable[str] = ()) -> None:
        listed = tuple(names)
        self._allows_any = not listed and not is_loopback(bound_to)
        self._exact = frozenset({bound_to.lower(), *listed})
        self._endings = tuple(name.removeprefix("*") for name in listed if name.startswith("*."))
        self._seen: set[bytes] = set()

    def admit(self, host: bytes) -> bool:
        """Whether `host`, the one Host header of a request, names this server."""
        if self._allows_any or host in self._seen:
            return True
        if not self._names_us(without_port(host).lower().removesuffix(".")):
            return False
        # The ports are the sender's to choose.
        if len(self._seen) < _MOST_SEEN:
            self._seen.add(host)
        return True

    def _names_us(self, name: str) -> bool:
        return is_loopback(name) or name in self._exact or name.endswith(self._endings)

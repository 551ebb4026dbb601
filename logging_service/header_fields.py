"""Headers that two readers may take in two ways, of which the parser lets some through."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

# Of two of them a proxy before us may heed the one, and we the other.
_ONCE = frozenset(
    {b"authorization", b"content-encoding", b"content-type", b"transfer-encoding", b"x-api-key"}
)
_VERSIONS = frozenset({"1.0", "1.1"})


def are_ambiguous(
    lines: Sequence[tuple[bytes, bytes]], fields: Mapping[bytes, bytes], http_version: str
) -> bool:
    """Whether a proxy may see another request in this header; `fields` are its `lines` by name."""
    if http_version not in _VERSIONS:
        return True
    coding = fields.get(b"transfer-encoding")
    if coding is not None and (coding.lower() != b"chunked" or http_version != "1.1"):
        return True
    if len(fields) == len(lines):
        return False
    times = Counter(name for name, _ in lines)
    return any(times[name] > 1 for name in _ONCE)


def host_in_target(target: bytes) -> bytes | None:
    """Return the host, with its port, that a whole URL in the request line names, else None.

    It counts, not what `Host` says (RFC 9112, 3.2.2).
    """
    scheme, is_url, rest = target.partition(b"://")
    return re.split(rb"[/?#]", rest, maxsplit=1)[0] if is_url and scheme.isalpha() else None


def declared_size(fields: Mapping[bytes, bytes]) -> int:
    """Return the Content-Length, 0 without one; the parser has refused everything but digits."""
    return int(fields.get(b"content-length", b"0"))

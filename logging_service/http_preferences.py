"""What a request's headers say about the answer: which form it may have, which one is known."""

import re
from hashlib import blake2b

_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')


def prefers(media_type: str, accept: str, default: str) -> bool:
    """Whether `accept`, an Accept header, likes `media_type` better than `default`."""
    return _quality(media_type, accept) > _quality(default, accept)


def _quality(media_type: str, accept: str) -> float:
    """Return the q-value of the range that fits most closely, 0 where none does."""
    ranges = {}
    for one in accept.lower().split(","):
        name, *parameters = (part.strip() for part in one.split(";"))
        ranges[name] = next(map(_q, (text for text in parameters if text.startswith("q="))), 1.0)
    closest = (media_type, f"{media_type.partition('/')[0]}/*", "*/*")
    return next((ranges[name] for name in closest if name in ranges), 0.0)


def _q(parameter: str) -> float:
    digits = parameter.removeprefix("q=")
    return float(digits) if re.fullmatch(r"[01](\.[0-9]{0,3})?", digits) else 0.0


def entity_tag(*parts: str) -> str:
    """Return a weak entity tag that is another one as soon as one of `parts` is."""
    digest = blake2b(digest_size=12)
    for part in parts:
        digest.update(f"{len(part)}:{part}".encode())
    return f'W/"{digest.hexdigest()}"'


def is_known(tag: str, if_none_match: str) -> bool:
    """Whether `if_none_match`, a header or "", has the entity tag, weak or not."""
    known = if_none_match.strip()
    return known == "*" or tag.removeprefix("W/") in _TAG.findall(known)

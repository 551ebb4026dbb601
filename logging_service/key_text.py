"""What a made key looks like: `lsk_<id>_<secret>`, the secret ending in a checksum."""

import secrets
import string
from zlib import crc32

_PREFIX = "lsk_"
_ID_CHARACTERS = string.ascii_lowercase + string.digits
_SECRET_CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
_ID_LENGTH, _SECRET_LENGTH, _CHECKSUM_LENGTH = 12, 40, 6
_ID = slice(len(_PREFIX), len(_PREFIX) + _ID_LENGTH)
_KEY_LENGTH = _ID.stop + 1 + _SECRET_LENGTH + _CHECKSUM_LENGTH
_KEY_CHARACTERS = frozenset(f"{_SECRET_CHARACTERS}_".encode())


def make_key() -> tuple[str, str]:
    """Return a new key's id and its whole text, which carries 238 bits of chance."""
    key_id = "".join(secrets.choice(_ID_CHARACTERS) for _ in range(_ID_LENGTH))
    secret = "".join(secrets.choice(_SECRET_CHARACTERS) for _ in range(_SECRET_LENGTH))
    text = f"{_PREFIX}{key_id}_{secret}"
    return key_id, text + _checksum(text.encode())


def looks_made(key: bytes) -> bool:
    """Whether `key` begins as made keys do."""
    return key.startswith(_PREFIX.encode())


def is_well_formed(key: bytes) -> bool:
    """Whether `key` is a made key that was copied whole: its checksum fits."""
    if len(key) != _KEY_LENGTH or not looks_made(key) or not _KEY_CHARACTERS.issuperset(key):
        return False
    return key[-_CHECKSUM_LENGTH:].decode() == _checksum(key[:-_CHECKSUM_LENGTH])


def claimed_id(key: bytes) -> bytes:
    """Return what stands where a made key has its id; of any other key that means nothing."""
    return key[_ID]


def _checksum(text: bytes) -> str:
    rest, digits = crc32(text), ""
    for _ in range(_CHECKSUM_LENGTH):
        rest, digit = divmod(rest, len(_SECRET_CHARACTERS))
        digits = _SECRET_CHARACTERS[digit] + digits
    return digits

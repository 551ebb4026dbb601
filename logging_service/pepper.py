"""Secrets without which stored digests tell nothing: of API keys, and of personal data."""

import hmac
import secrets

from logging_service import data_folder
from logging_service.errors import SettingsError
from logging_service.settings import Settings

_FILE, _PII_FILE = "key_pepper", "pii_key"
_FINGERPRINT_BYTES = 8


class Pepper:
    """Makes digests of keys; `fingerprint` tells it from other peppers and gives nothing away."""

    __slots__ = ("_secret", "fingerprint")

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self.fingerprint = self.digest(b"fingerprint")[:_FINGERPRINT_BYTES]

    def digest(self, key: bytes) -> bytes:
        """Return the HMAC-SHA-256 of a whole key, 32 bytes."""
        return hmac.digest(self._secret, key, "sha256")


def random_pepper() -> Pepper:
    """Return one that no stored digest was made with."""
    return Pepper(secrets.token_bytes(32))


def pepper_of(settings: Settings) -> Pepper | None:
    """Return `API_KEY_PEPPER`, else what `DATA_DIR` keeps; None while there is neither."""
    text = _configured(settings) or settings.kept_secret(_FILE)
    return Pepper(text.encode()) if text else None


def kept_pepper(settings: Settings) -> Pepper:
    """Return the pepper, which is made and kept in `DATA_DIR` when there is none yet.

    Raises SettingsError when it can be neither read nor kept.
    """
    text = _configured(settings) or _kept(settings, _FILE, "API_KEY_PEPPER")
    return Pepper(text.encode())


def kept_pii_key(settings: Settings) -> bytes:
    """Return `PII_HASH_KEY`, else what `DATA_DIR` keeps, which is made when there is none yet.

    Raises SettingsError when it can be neither read nor kept.
    """
    configured = settings.pii_hash_key
    text = configured.get_secret_value() if configured else None
    return (text or _kept(settings, _PII_FILE, "PII_HASH_KEY")).encode()


def pii_fingerprint_of(settings: Settings) -> str | None:
    """Return what tells `PII_HASH_KEY` from others and gives nothing away; None: there is none."""
    configured = settings.pii_hash_key
    text = configured.get_secret_value() if configured else settings.kept_secret(_PII_FILE)
    return Pepper(text.encode()).fingerprint.hex() if text else None


def _kept(settings: Settings, name: str, instead: str) -> str:
    folder = settings.data_path
    data_folder.create(folder)
    try:
        return data_folder.kept_secret(folder / name, lambda: secrets.token_urlsafe(32))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise SettingsError(
            f"DATA_DIR={folder} cannot keep {name}: {reason}; set {instead}"
        ) from None


def _configured(settings: Settings) -> str | None:
    return settings.api_key_pepper.get_secret_value() if settings.api_key_pepper else None

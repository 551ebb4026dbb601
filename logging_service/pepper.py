"""The secret without which stored digests of keys tell nothing: who has the rows has no key."""

import hmac
import secrets

from logging_service import data_folder
from logging_service.errors import SettingsError
from logging_service.settings import Settings

_FILE = "key_pepper"
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
    text = _configured(settings)
    if text is None:
        folder = settings.data_path
        data_folder.create(folder)
        try:
            text = data_folder.kept_secret(folder / _FILE, lambda: secrets.token_urlsafe(32))
        except OSError as error:
            raise SettingsError(
                f"DATA_DIR={folder} cannot keep {_FILE}: {error.strerror}; set API_KEY_PEPPER"
            ) from None
    return Pepper(text.encode())


def _configured(settings: Settings) -> str | None:
    return settings.api_key_pepper.get_secret_value() if settings.api_key_pepper else None

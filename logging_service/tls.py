"""What our servers speak TLS with."""

import ssl
from pathlib import Path
from typing import NamedTuple

# Of TLS 1.2 only what keeps old recordings secret and is not open to padding attacks.
_TLS_1_2_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


class TlsFiles(NamedTuple):
    """The files of a server's certificate, with its chain, and of its key; both PEM."""

    certificate: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """Return what a server needs for TLS 1.2 and later.

        Raises ValueError, one line, when a file is not there, cannot be read or does not fit.
        """
        for file in self:
            try:
                file.open("rb").close()
            except OSError as error:
                raise ValueError(f"{file}: {error.strerror}") from None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_ciphers(_TLS_1_2_CIPHERS)
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(*self, password=self._refuse_encrypted)
        except ssl.SSLError as error:
            raise ValueError(self._fault(error)) from None
        return context

    def _refuse_encrypted(self) -> str:
        # Without this a person would be asked at the terminal, and a service would hang.
        raise ValueError(f"{self.key}: the key is encrypted; one without a passphrase is needed")

    def _fault(self, error: ssl.SSLError) -> str:
        if error.reason == "KEY_VALUES_MISMATCH":
            return f"{self.key} is not the key of {self.certificate}"
        return f"{self.certificate} and {self.key} are not a certificate and its key in PEM"

"""What our servers speak TLS with."""

import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

# Of TLS 1.2 only what keeps old recordings secret and is not open to padding attacks.
_TLS_1_2_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
_VERSION, _UTC_TIME = 0xA0, 0x17


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


def certificate_in(file: Path) -> bytes:
    """Return the first certificate in a PEM file, as DER; raises OSError or ValueError."""
    text = file.read_text(encoding="ascii", errors="replace")
    _, begin, rest = text.partition(_BEGIN)
    body, end, _ = rest.partition(_END)
    if not (begin and end):
        raise ValueError(f"{file} holds no certificate in PEM")
    return ssl.PEM_cert_to_DER_cert(begin + body + end)


def valid_until(certificate: bytes) -> datetime:
    """Return when a certificate, DER, ends; raises ValueError."""
    try:
        body = _Der(_Der(certificate).next()[1]).next()[1]
        fields = _Der(body)
        kind, _ = fields.next()
        # A version comes before the serial number; then the algorithm, the issuer, the validity.
        for _ in range(3 if kind == _VERSION else 2):
            fields.next()
        validity = _Der(fields.next()[1])
        validity.next()
        kind, text = validity.next()
    except IndexError:
        raise ValueError("it is no certificate") from None
    pattern = "%y%m%d%H%M%SZ" if kind == _UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.strptime(text.decode("ascii", "replace"), pattern).replace(tzinfo=UTC)


class _Der:
    """Elements of DER, one after the other."""

    def __init__(self, encoded: bytes) -> None:
        self._encoded = encoded

    def next(self) -> tuple[int, bytes]:
        """Return the next element's tag and content; raises IndexError where there is none."""
        kind, size, begin = self._encoded[0], self._encoded[1], 2
        if size & 0x80:
            begin += size & 0x7F
            size = int.from_bytes(self._encoded[2:begin])
        content = self._encoded[begin : begin + size]
        if len(content) != size:
            raise IndexError
        self._encoded = self._encoded[begin + size :]
        return kind, content

"""A relay that speaks TLS as PostgreSQL does, and certificates for it and its clients."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import trustme
from relay import Relay, a_relay

_SSL_REQUEST = bytes.fromhex("00000008 04d2162f")


class Authority:
    """An authority of a test's own, whose certificate is in `file`."""

    def __init__(self, folder: Path, name: str) -> None:
        self.file = folder / f"{name}.pem"
        self._authority = trustme.CA()
        self._authority.cert_pem.write_to_path(str(self.file))

    def server(self, *names: str, asks_clients: bool = False) -> ssl.SSLContext:
        """Return what a server of these names speaks TLS with."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._authority.issue_cert(*names).configure_cert(context)
        if asks_clients:
            context.verify_mode = ssl.CERT_REQUIRED
            self._authority.configure_trust(context)
        return context

    def files(self, folder: Path, *names: str) -> tuple[Path, Path]:
        """Return the files of a server's certificate and key."""
        made = self._authority.issue_cert(*names)
        certificate, key = folder / f"{names[0]}.pem", folder / f"{names[0]}.key"
        made.cert_chain_pems[0].write_to_path(str(certificate))
        made.private_key_pem.write_to_path(str(key))
        return certificate, key

    def client(self, folder: Path) -> tuple[Path, Path]:
        """Return the files of a client's certificate and key."""
        return self.files(folder, "client@example.test")


class PostgresTlsRelay(Relay):
    """Answers a client's request for TLS with yes, and passes on what comes encrypted then."""

    def __init__(self, target_port: int, context: ssl.SSLContext) -> None:
        super().__init__(target_port)
        self._context = context

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked = await reader.readexactly(len(_SSL_REQUEST))
            if asked == _SSL_REQUEST:
                writer.write(b"S")
                await writer.start_tls(self._context)
                await super()._serve(reader, writer)
        except (OSError, EOFError):
            pass
        finally:
            writer.transport.abort()


@asynccontextmanager
async def tls_before_redis(url: str, context: ssl.SSLContext) -> AsyncIterator[str]:
    """Yield the URL, of the host `localhost`, that leads through TLS to the server of `url`."""
    port = urlsplit(url).port
    assert port is not None
    async with a_relay(port, context) as relay:
        yield f"rediss://localhost:{relay.port}/1"


@asynccontextmanager
async def tls_before_postgres(url: str, context: ssl.SSLContext) -> AsyncIterator[str]:
    """Yield the URL that leads through TLS to the server of `url`; it still needs its sslmode."""
    port = urlsplit(url).port
    assert port is not None
    relay = PostgresTlsRelay(port, context)
    await relay.mend()
    try:
        yield url.replace(f":{port}", f":{relay.port}")
    finally:
        await relay.cut()

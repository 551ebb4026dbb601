"""A process as `up` sees it, copied to the name of a service: `/health`, SIGTERM, exit codes.

`STAND_IN_<NAME>` makes it misbehave: `refuse` its settings, be `stubborn`, start a `worker`.
"""

import asyncio
import json
import os
import signal
import ssl
import subprocess
import sys
from pathlib import Path

NAME = Path(sys.argv[0]).stem.upper()
PORTS = {
    "PRODUCER": "PRODUCER_PORT",
    "QUERY_SERVICE": "QUERY_SERVICE_PORT",
    "MAIN": "GATEWAY_PORT",
}


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + json.dumps(dict(os.environ)).encode())
    await writer.drain()
    writer.close()


def certificate() -> ssl.SSLContext | None:
    file, key = (os.environ.get(f"{NAME}_TLS_{what}") for what in ("CERT", "KEY"))
    if file is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file, key)
    return context


async def serve(port: int) -> None:
    try:
        server = await asyncio.start_server(answer, "127.0.0.1", port, ssl=certificate())
        await server.serve_forever()
    except OSError:
        await asyncio.Event().wait()


def main() -> None:
    manner = os.environ.get(f"STAND_IN_{NAME}")
    if manner == "refuse":
        print(f"{NAME}_SETTING=odd cannot be used", file=sys.stderr)
        sys.exit(2)
    wish = signal.SIG_IGN if manner == "stubborn" else signal.SIG_DFL
    signal.signal(signal.SIGTERM, wish)
    if manner == "worker":
        subprocess.Popen(["sleep", "600"], start_new_session=True)
    asyncio.run(serve(int(os.environ[PORTS.get(NAME, "METRICS_PORT")])))


if __name__ == "__main__":
    main()

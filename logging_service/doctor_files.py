"""What an examination looks for on this host's disk: room, the spool, secrets, certificates."""

import asyncio
import os
import shlex
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from logging_service.backends import damaged_spool_files
from logging_service.doctor_findings import (
    Check,
    Examined,
    Finding,
    examine_all,
    failure,
    in_words,
    is_secret,
    ok,
    warning,
)
from logging_service.doctor_postgres import data_directory
from logging_service.face_settings import FACES
from logging_service.fallback_spools import FallbackSpools
from logging_service.hosts import is_loopback
from logging_service.settings import Settings
from logging_service.spool_file import peek
from logging_service.tls import certificate_in, valid_until

_LOW_BYTES, _LOW_SHARE = 2 * 1024**3, 0.05
_NONE_BYTES = 256 * 1024**2
_NEARLY_FULL = 0.8
_SOON_DAYS = 30
KEPT_SECRETS = ("api_key", "pgpass", "pgpass_owner", "pgpass_admin", "key_pepper", "pii_key")
"""The files in DATA_DIR with a secret in them."""
_CERTIFICATE_OPTIONS = ("sslcert", "sslrootcert", "ssl_certfile", "ssl_ca_certs")
_MOST_NAMED = 5


async def examine_files(examined: Examined) -> list[Finding]:
    """Return what there is to say of this host's files; nothing is opened for writing."""
    settings = examined.settings

    def on_disk(name: str, look: Callable[[], Sequence[Finding]]) -> Check:
        return Check(name, partial(asyncio.to_thread, look), "see whether the disk answers")

    return await examine_all(
        (
            on_disk("disk", lambda: [_disk("disk", "DATA_DIR", settings.data_path)]),
            Check("postgresql_disk", lambda: _postgres_disk(settings)),
            on_disk("spool", lambda: list(_spool(settings))),
            on_disk("secrets", lambda: [_secrets(examined)]),
            on_disk("certificates", lambda: [_certificates(settings)]),
        )
    )


def _disk(check: str, what: str, folder: Path) -> Finding:
    there = next(place for place in (folder, *folder.parents) if place.exists())
    disk = shutil.disk_usage(there)
    found = f"{in_words(disk.free)} of {in_words(disk.total)} free for {what}, {folder}"
    advice = f"free some, or move {what}; `du -xh -d2 {there}` says what fills it"
    if disk.free < _NONE_BYTES:
        return failure(check, found, advice)
    if disk.free < min(_LOW_BYTES, _LOW_SHARE * disk.total):
        return warning(check, found, advice)
    return ok(check, found)


async def _postgres_disk(settings: Settings) -> list[Finding]:
    check = "postgresql_disk"
    if not is_loopback(urlsplit(settings.store_url).hostname or ""):
        return [ok(check, "is on another host: look there")]
    try:
        told = await data_directory(settings)
    except Exception as error:  # noqa: BLE001 - whether it answers is another check's finding
        return [ok(check, f"is not known: {type(error).__name__}")]
    return [await asyncio.to_thread(_server_disk, check, told, settings.data_path / "postgres")]


def _server_disk(check: str, told: Path | None, bundled: Path) -> Finding:
    folder = told or bundled
    if not folder.is_dir():
        return ok(check, "is not told to the services' role: look at the server's disk")
    return _disk(check, "PostgreSQL", folder)


def _spool(settings: Settings) -> Iterator[Finding]:
    check, file = "spool", settings.spool_file
    if file is None:
        yield warning(
            check,
            "SPOOL_PATH=:memory: keeps events in memory: a killed producer loses them",
            "unset SPOOL_PATH",
        )
        return
    spools = FallbackSpools(file, settings.spool_max_bytes)
    files = spools.others()
    yield _damage(settings, files)
    largest = max((one.stat().st_size for one in files if one.exists()), default=0)
    waiting = sum(holding.held for one in files if (holding := peek(one)))
    found = f"{waiting:,} events wait in {len(files)} files of {file.parent}"
    if not files:
        yield ok(check, f"no file in {file.parent}")
    elif largest > _NEARLY_FULL * settings.spool_max_bytes:
        most = in_words(settings.spool_max_bytes)
        full = f"{found}; the largest has {in_words(largest)} of SPOOL_MAX_BYTES ({most})"
        advice = "mend Redis and the consumer, or raise SPOOL_MAX_BYTES: writes get 503 then"
        yield warning(check, full, advice)
    elif waiting and settings.use_redis_queue:
        yield warning(check, found, "mend Redis: producers that run move them there by themselves")
    else:
        yield ok(check, found)


def _damage(settings: Settings, files: Sequence[Path]) -> Finding:
    check = "spool_damage"
    aside = damaged_spool_files(settings)
    events = sum(holding.damaged for one in files if (holding := peek(one)))
    if aside:
        advice = "`logging-service spool salvage <file>`; /health names each"
        return failure(check, f"{aside} spool files were set aside as damaged", advice)
    if events:
        advice = "look at the disk; docs/operations.md, A damaged spool"
        return failure(check, f"{events:,} spooled events were altered by the disk", advice)
    return ok(check, "none")


def _secrets(examined: Examined) -> Finding:
    check, settings = "secrets", examined.settings
    keys = [tls.key for face in FACES if (tls := settings.tls_files(face))]
    kept = [settings.data_path / name for name in KEPT_SECRETS]
    named = [examined.env_file] if any(map(is_secret, examined.in_file)) else []
    there = [file for file in (*kept, *keys, *named) if file.is_file()]
    open_ones = [file for file in there if stat.S_IMODE(file.stat().st_mode) & 0o077]
    if open_ones:
        files = shlex.join(str(file) for file in open_ones[:_MOST_NAMED])
        found = f"others on this host may read {len(open_ones)} files with secrets"
        return warning(check, found, f"`chmod 600 {files}`")
    unreadable = [file.name for file in there if not os.access(file, os.R_OK)]
    if unreadable:
        found = f"this user may not read {', '.join(unreadable)}"
        return warning(check, found, "run as the user of the services, or set the variables")
    return ok(check, f"{len(there)} files, for their owner alone")


def _certificates(settings: Settings) -> Finding:
    check, now = "certificates", datetime.now(UTC)
    ends: list[tuple[datetime, Path]] = []
    for file in _certificate_files(settings):
        try:
            ends.append((valid_until(certificate_in(file)), file))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            return failure(check, f"{file}: {reason}", "put a certificate in PEM there")
    if not ends:
        return ok(check, "none is set")
    first, file = min(ends)
    days = (first - now).days
    found = f"{len(ends)} are set; the first to end is {file}, on {first:%Y-%m-%d}"
    if days < 0:
        return failure(check, f"{found}: it has ended", "renew it, and restart its service")
    if days < _SOON_DAYS:
        return warning(check, f"{found}, in {days} days", "renew it, and restart its service")
    return ok(check, found)


def _certificate_files(settings: Settings) -> Iterator[Path]:
    for face in FACES:
        if files := settings.tls_files(face):
            yield files.certificate
    for url in (settings.redis_url, settings.database_url, settings.database_owner_url):
        for name, value in parse_qsl(urlsplit(url or "").query):
            if name in _CERTIFICATE_OPTIONS:
                yield Path(value)

"""What an examination finds in the settings: where each came from, and what means nothing."""

import platform
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path

import apsw

from logging_service.doctor_findings import Examined, Finding, failure, is_secret, ok, warning
from logging_service.hosts import is_loopback
from logging_service.postgres import SCHEMA_REVISION
from logging_service.settings import Settings, project_root
from logging_service.terminal import printable
from logging_service.web import release

_FAMILIES = ("RATE_LIMIT_", "LOG_TTL_DAYS_")
_OURS = {"rate_limits", "log_ttls_days"}
# In `.env` everything is meant for us; in the environment only what is nearly a name of ours.
_LIKE, _VERY_LIKE = 0.7, 0.9
_MOST_NAMED = 20
_MOST_CHARACTERS = 60
# Releases of SQLite before it can damage a file whose log is shared.
_SOUND_SQLITE = (3, 51, 3)


def examine_settings(examined: Examined) -> list[Finding]:
    """Return what there is to say of versions and settings; nothing is asked, nothing waits."""
    settings = examined.settings
    return [
        *examine_host(),
        _named(examined),
        unknown_variables(examined.environment, examined.in_file, examined.env_file),
        _keys(settings, examined.settings.kept_secret("api_key")),
        _reading(settings),
    ]


def examine_host() -> Iterator[Finding]:
    """Yield what runs here, whatever the settings are."""
    python = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield ok("version", f"logging-service {release()}, schema {SCHEMA_REVISION}; {python}")
    sqlite = apsw.sqlite_lib_version()
    if tuple(int(part) for part in sqlite.split(".")) < _SOUND_SQLITE:
        advice = "`pip install --upgrade apsw`"
        yield failure("sqlite", f"{sqlite} can damage a spool that processes share", advice)
    else:
        yield ok("sqlite", f"SQLite {sqlite} in apsw")


def _named(examined: Examined) -> Finding:
    in_file, given = examined.in_file, examined.environment
    in_environment = {name.upper() for name, value in given.items() if value}
    told = []
    for name, value in sorted(examined.named.items()):
        if name.lower() not in Settings.model_fields and not name.startswith(_FAMILIES):
            continue
        source = "environment" if name in in_environment else examined.env_file.name
        told.append(f"{name}={_shown(name, value)} ({source})")
    file = f"{examined.env_file} names {len(in_file)}" if in_file else f"no {examined.env_file}"
    listed = ", ".join(told) or "every setting has its default"
    return ok("settings", f"{listed}; {file}")


def _shown(name: str, value: str) -> str:
    return "(not shown)" if is_secret(name) else printable(value[:_MOST_CHARACTERS])


@cache
def known_variables() -> frozenset[str]:
    """Return every variable that means something: what `env.template` documents, and settings."""
    places = (project_root() / "env.template", Path(__file__).parent / "env.template")
    template = next((place.read_text(encoding="utf-8") for place in places if place.is_file()), "")
    documented = re.findall(r"^#?([A-Z][A-Z0-9_]*)=", template, re.MULTILINE)
    fields = (name.upper() for name in Settings.model_fields if name not in _OURS)
    return frozenset({*documented, *fields, "LOGGING_ENABLED", "LOGGING_SERVICE_URL"})


def unknown_variables(
    environment: Mapping[str, str], in_file: Mapping[str, str], env_file: Path
) -> Finding:
    """Name what is set and means nothing, with the name that may have been meant."""
    check = "unknown_variables"
    strange = [
        *(_strange(name, _LIKE, must_resemble=False) for name in sorted(in_file)),
        *(
            _strange(name.upper(), _VERY_LIKE, must_resemble=True)
            for name, value in sorted(environment.items())
            if value and name.upper() not in in_file
        ),
    ]
    named = [name for name in strange if name]
    if not named:
        return ok(check, "none")
    more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
    found = f"nothing reads {', '.join(named[:_MOST_NAMED])}{more}"
    return warning(check, found, f"correct or remove them, in the environment or {env_file}")


def _strange(name: str, cutoff: float, *, must_resemble: bool) -> str | None:
    known = known_variables()
    if name in known or name.startswith(_FAMILIES):
        return None
    meant = get_close_matches(name, known, n=1, cutoff=cutoff)
    if must_resemble and not meant:
        return None
    shown = printable(name[:_MOST_CHARACTERS])
    return f"{shown} (did you mean {meant[0]}?)" if meant else shown


def _keys(settings: Settings, kept: str | None) -> Finding:
    if settings.api_key or settings.admin_api_key:
        given = [name for name in ("api_key", "admin_api_key") if getattr(settings, name)]
        return ok("api_key", f"{' and '.join(given).upper()} set")
    if kept:
        return ok("api_key", "generated by `up`, in DATA_DIR/api_key")
    found = "neither API_KEY nor ADMIN_API_KEY is set: only keys of `keys create` are good"
    return warning("api_key", found, "set API_KEY in .env, or `logging-service keys create`")


def _reading(settings: Settings) -> Finding:
    check, host = "reading", settings.query_service_host
    if settings.query_require_api_key:
        return ok(check, "needs a key, also over loopback")
    if is_loopback(host):
        note = "QUERY_REQUIRE_API_KEY=true ends that"
        return ok(check, f"everyone on this host may read at {host} without a key", note)
    return ok(check, f"needs a key: the query service is bound to {host}")

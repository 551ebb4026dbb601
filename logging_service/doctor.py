"""Examines everything that "it does not work" may come from: at once, in seconds, reading only."""

import asyncio
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import SecretStr

from logging_service.doctor_files import KEPT_SECRETS, examine_files
from logging_service.doctor_findings import (
    Check,
    Examined,
    Finding,
    Mask,
    Threads,
    examine_all,
    failure,
)
from logging_service.doctor_postgres import examine_postgres
from logging_service.doctor_redis import examine_redis
from logging_service.doctor_services import examine_services
from logging_service.doctor_settings import examine_host, examine_settings, unknown_variables
from logging_service.errors import SettingsError
from logging_service.settings import Settings, load_settings, project_root

# Each family bounds its own questions; this is for what nobody thought of.
_FAMILY_SECONDS = 8.0
_PASSWORD_OPTIONS = ("sentinel_password", "password", "sslpassword")


async def diagnose(
    settings: Settings | SettingsError,
    environment: Mapping[str, str],
    env_file: Path,
    skip: Collection[str] = (),
) -> list[Finding]:
    """Return every finding, in the same order each time; takes up to ten seconds.

    Of settings that cannot be used, what stands in their way. What is in `skip` (`postgresql`,
    `redis`, `services`, `files`) is not looked at. No finding has a secret in it.
    """
    if isinstance(settings, SettingsError):
        return _unusable(settings, environment, env_file)
    examined = Examined(settings, environment, env_file)

    async def of_settings() -> list[Finding]:
        return examine_settings(examined)

    families = (
        Check("settings", of_settings),
        Check("postgresql", lambda: examine_postgres(examined)),
        Check("redis", lambda: examine_redis(examined)),
        Check("services", lambda: examine_services(examined, key_of(settings))),
        Check("files", lambda: examine_files(examined)),
    )
    wanted = (family for family in families if family.name not in skip)
    found = await examine_all(family._replace(seconds=_FAMILY_SECONDS) for family in wanted)
    mask = Mask(secrets_of(settings))
    return [mask.hide(finding) for finding in found]


def _unusable(
    error: SettingsError, environment: Mapping[str, str], env_file: Path
) -> list[Finding]:
    examined = Examined(Settings.model_construct(), environment, env_file)
    return [
        *examine_host(),
        failure("settings", str(error), f"correct it in the environment or in {env_file}"),
        unknown_variables(environment, examined.in_file, env_file),
    ]


def key_of(settings: Settings) -> str | None:
    """Return the key that a client of this host sends: API_KEY, else what `up` generated."""
    return (
        settings.api_key.get_secret_value() if settings.api_key else settings.kept_secret("api_key")
    )


def secrets_of(settings: Settings) -> list[str]:
    """Return every secret that the settings name or lead to, as it may turn up in a text."""
    values = (getattr(settings, name) for name in Settings.model_fields)
    secrets = [value.get_secret_value() for value in values if isinstance(value, SecretStr)]
    secrets += [kept for name in KEPT_SECRETS if (kept := settings.kept_secret(name))]
    secrets += [kept.rpartition(":")[2] for kept in secrets if kept.startswith("*:*:*:")]
    for url in (settings.queue_url, settings.store_url, settings.owner_url):
        parts = urlsplit(url)
        secrets += [parts.password, unquote(parts.password)] if parts.password else []
        options = parse_qsl(parts.query)
        secrets += [value for name, value in options if name in _PASSWORD_OPTIONS]
    return secrets


async def diagnose_here(skip: Collection[str] = ()) -> list[Finding]:
    """Return what `diagnose` finds with the environment and the `.env` of this project."""
    asyncio.get_running_loop().set_default_executor(Threads())
    try:
        settings: Settings | SettingsError = load_settings()
    except SettingsError as error:
        settings = error
    return await diagnose(settings, os.environ, project_root() / ".env", skip)

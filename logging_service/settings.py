"""Every setting, read once from the environment and `.env`; nothing else reads either."""

import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar, overload
from urllib.parse import quote

from dotenv import dotenv_values
from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import SettingsConfigDict

from logging_service.database_address import bracketed, check_database_url, database_url
from logging_service.errors import SettingsError
from logging_service.event_ttls import EventTtls, longest_of, variable_part
from logging_service.face_settings import FaceSettings
from logging_service.redis_address import parse_redis_url
from logging_service.tls import TlsFiles

_CODE = Path(__file__).resolve().parent


def project_root() -> Path:
    """Return the folder that holds `env.template`, in an installed package the current folder."""
    checkout = _CODE.parent
    return checkout if (checkout / "env.template").is_file() else Path.cwd()


_RATE = re.compile(r"([1-9][0-9]{0,8})/(second|minute|hour|day)")
_PERIOD_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}


class Rate(tuple[int, int]):
    """A number of requests and the seconds in which they may be made."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `1000/minute`; raises ValueError for anything else."""
        match = _RATE.fullmatch(text.strip().lower())
        if match is None:
            raise ValueError("a number, a slash and second, minute, hour or day: 1000/minute")
        return cls((int(match[1]), _PERIOD_SECONDS[match[2]]))


def _check_rate(text: object) -> object:
    Rate.parse(str(text))
    return text


Port = Annotated[int, Field(ge=1, le=65535)]
RateText = Annotated[str, BeforeValidator(_check_rate)]


def _stripped(secret: object) -> object:
    # A mounted secret often ends with a newline, which no header can carry.
    return secret.strip() if isinstance(secret, str) else secret


HeaderSecret = Annotated[SecretStr, BeforeValidator(_stripped)]
ApiKey = Annotated[HeaderSecret, Field(min_length=8, max_length=200)]
TtlDays = Annotated[int, Field(ge=0, le=36_500)]


class Settings(FaceSettings):
    """The settings of every process; names are the environment's, in lower case."""

    model_config = SettingsConfigDict(
        env_file=project_root() / ".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
    )

    api_key: ApiKey | None = Field(default=None, description="a key with the scopes write and read")
    admin_api_key: ApiKey | None = Field(default=None, description="a key with every scope")

    api_key_pepper: SecretStr | None = Field(
        default=None,
        min_length=16,
        max_length=1000,
        description="what stored digests of keys are made with; default: kept in DATA_DIR",
    )
    auth_failure_limit: RateText = Field(
        default="100/minute", description="requests with a wrong key, per address"
    )

    use_redis_queue: bool = Field(
        default=True, description="false: the queue is a file of this host, SPOOL_PATH"
    )
    redis_url: str | None = Field(
        default=None, description="redis://, rediss:// or redis+sentinel://; wins over REDIS_*"
    )
    redis_host: str = Field(default="localhost", description="where Redis listens")
    redis_port: Port = Field(default=6379, description="the port of Redis")
    redis_db: int = Field(default=0, ge=0, le=65535, description="the number of the Redis database")
    redis_password: SecretStr | None = Field(default=None, description="the password of Redis")
    redis_queue_name: str = Field(
        default="log_queue",
        min_length=1,
        max_length=200,
        pattern=r"^[^{}\s]+$",
        description="list's key",
    )
    redis_queue_ttl: int = Field(
        default=604_800,
        ge=60,
        le=31_536_000,
        description="seconds that an event may wait in the queue",
    )
    redis_timeout_ms: int = Field(
        default=250,
        ge=10,
        le=60_000,
        description="milliseconds that Redis may take to hold events before they are spooled",
    )
    queue_max_events: int = Field(
        default=5_000_000,
        ge=1_000,
        le=1_000_000_000,
        description="waiting events at which Redis is full and writes are answered with 503",
    )
    spool_path: str | None = Field(
        default=None,
        min_length=1,
        description="the local queue's file, or :memory:; default: spool/queue.sqlite in DATA_DIR",
    )
    spool_max_bytes: int = Field(
        default=1_073_741_824,
        ge=1_048_576,
        description="bytes that each spool file may hold",
    )
    spool_drain_per_second: int = Field(
        default=20_000,
        ge=1,
        le=1_000_000,
        description="spooled events a second that go into Redis when it is back",
    )

    database_url: str | None = Field(
        default=None, description="postgresql://; wins over DATABASE_*"
    )
    database_owner_url: str | None = Field(
        default=None,
        description="postgresql://, as the role that owns the schema; default: one role",
    )
    database_host: str = Field(default="localhost", description="where PostgreSQL listens")
    database_port: Port = Field(default=5432, description="the port of PostgreSQL")
    database_name: str = Field(default="code_reviewer_logs", min_length=1, max_length=63)
    database_user: str = Field(default="logging_service_user", min_length=1, max_length=63)
    database_password: SecretStr | None = Field(
        default=None, description="the password of PostgreSQL"
    )

    producer_host: str = Field(
        default="127.0.0.1", description="the address that the producer binds"
    )
    producer_port: Port = Field(default=8001, description="the port of the producer")
    query_service_host: str = Field(default="127.0.0.1", description="the query service's address")
    query_service_port: Port = Field(default=8002, description="the port of the query service")
    gateway_host: str = Field(default="127.0.0.1", description="the address of the API gateway")
    gateway_port: Port = Field(default=8000, description="the port of the API gateway")
    query_require_api_key: bool = Field(
        default=False, description="true: reading needs a key, also over loopback"
    )
    enable_metrics: bool = Field(default=True, description="false closes /metrics, never /health")
    metrics_host: str = Field(
        default="127.0.0.1", description="the address of the consumer's own port"
    )
    metrics_port: Port = Field(default=9091, description="the consumer's /metrics and /health")

    rate_limit: RateText = Field(
        default="1000/minute", description="requests per API key and endpoint"
    )
    prices_file: Path | None = Field(
        default=None, description="the operator's own prices, TOML; they win over the list prices"
    )
    log_ttl_days: TtlDays = Field(default=7, description="days that events are kept; 0 keeps them")
    ledger_ttl_days: TtlDays = Field(
        default=400, description="days that the ledger of model calls is kept; 0 keeps it"
    )
    rollup_ttl_days: TtlDays = Field(
        default=400, description="days that sums for analytics are kept; 0 keeps them"
    )
    pii_fields: str = Field(
        default="email,ip,ip_address,phone,full_name",
        max_length=4000,
        description="payload fields that are replaced, separated by commas",
    )
    pii_hash_key: SecretStr | None = Field(
        default=None,
        min_length=16,
        max_length=1000,
        description="what replaced values are hashed with; default: kept in DATA_DIR",
    )
    redaction_file: Path | None = Field(
        default=None, description="the operator's own rules of redaction, TOML"
    )
    data_dir: Path = Field(
        default=Path("data"), description="spool, bundled servers and what `up` keeps"
    )

    consumer_batch_size: int = Field(
        default=10_000,
        ge=1,
        le=50_000,
        description="events that one transaction stores at the most",
    )
    dead_letter_max_ratio: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="share of bad events at which the consumer stops storing; 1: never",
    )
    shutdown_grace_seconds: float = Field(
        default=8.0, ge=0.5, le=300, description="seconds that a process may take to stop"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info")

    rate_limits: dict[str, RateText] = Field(
        default_factory=dict, exclude=True, description="RATE_LIMIT_<ENDPOINT>, by endpoint"
    )
    log_ttls_days: dict[str, TtlDays] = Field(
        default_factory=dict, exclude=True, description="LOG_TTL_DAYS_<TYPE>, by event type"
    )

    @field_validator("redis_url")
    @classmethod
    def _redis_scheme(cls, url: str | None) -> str | None:
        if url is not None:
            parse_redis_url(url)
        return url

    @field_validator("database_url", "database_owner_url")
    @classmethod
    def _database_scheme(cls, url: str | None) -> str | None:
        return None if url is None else check_database_url(url)

    @field_validator("spool_path")
    @classmethod
    def _no_folder(cls, path: str | None) -> str | None:
        if path is not None and (project_root() / Path(path).expanduser()).is_dir():
            raise ValueError("it is a folder; a file is wanted, or :memory:")
        return path

    @model_validator(mode="after")
    def _keys_differ(self) -> Self:
        if self.api_key is not None and self.api_key == self.admin_api_key:
            raise ValueError("API_KEY cannot be used: it is ADMIN_API_KEY, which may do everything")
        return self

    @model_validator(mode="after")
    def _memory_is_no_fallback(self) -> Self:
        if self.use_redis_queue and self.spool_path == ":memory:":
            raise ValueError("SPOOL_PATH=:memory: cannot be used: it needs USE_REDIS_QUEUE=false")
        return self

    @model_validator(mode="after")
    def _owner_of_a_named_database(self) -> Self:
        if self.database_owner_url and not self._names_database:
            raise ValueError("DATABASE_OWNER_URL cannot be used: it needs DATABASE_URL or _HOST")
        return self

    @field_validator("prices_file", "redaction_file")
    @classmethod
    def _there(cls, path: Path | None) -> Path | None:
        found = path and (project_root() / path.expanduser()).resolve()
        if found and not found.is_file():
            raise ValueError("there is no such file")
        return found

    @property
    def pii_field_names(self) -> tuple[str, ...]:
        """The names in `PII_FIELDS`."""
        return tuple(name.strip() for name in self.pii_fields.split(",") if name.strip())

    @property
    def data_path(self) -> Path:
        """`DATA_DIR`, absolute; a relative one is below the project's root."""
        return (project_root() / self.data_dir.expanduser()).resolve()

    @property
    def spool_file(self) -> Path | None:
        """The local queue's file, absolute; None: its events live in memory only."""
        if self.spool_path == ":memory:":
            return None
        if self.spool_path is None:
            return self.data_path / "spool" / "queue.sqlite"
        return (project_root() / Path(self.spool_path).expanduser()).resolve()

    def tls_files(self, face: str) -> TlsFiles | None:
        """Return the certificate and key of `face`, absolute; None: it speaks no TLS."""
        certificate, key = getattr(self, f"{face}_tls_cert"), getattr(self, f"{face}_tls_key")
        if certificate is None or key is None:
            return None
        files = (project_root() / file.expanduser() for file in (certificate, key))
        return TlsFiles(*(file.resolve() for file in files))

    @property
    def queue_is_memory(self) -> bool:
        """Whether events wait in the memory of one process, which has to store them itself."""
        return self.spool_file is None

    @property
    def queue_url(self) -> str:
        """Where Redis is, as one URL."""
        if self.redis_url:
            return self.redis_url
        secret = self.redis_password.get_secret_value() if self.redis_password else ""
        login = f":{quote(secret, safe='')}@" if secret else ""
        return f"redis://{login}{bracketed(self.redis_host)}:{self.redis_port}/{self.redis_db}"

    @property
    def store_url(self) -> str:
        """Where PostgreSQL is, as one URL."""
        if self.database_url:
            return self.database_url
        secret = self.database_password.get_secret_value() if self.database_password else ""
        if not secret and "database_host" not in self.model_fields_set:
            secret = (self.kept_secret("pgpass") or "").rpartition(":")[2]
        return self._url_as(self.database_user, secret)

    @property
    def owner_url(self) -> str:
        """The same database for who migrates: as the role that owns it, where there is one."""
        if self.database_owner_url:
            return self.database_owner_url
        kept = None if self._names_database else self.kept_secret("pgpass_owner")
        if kept is None:
            return self.store_url
        user, secret = kept.split(":")[-2:]
        return self._url_as(user, secret)

    @property
    def _names_database(self) -> bool:
        return not self.model_fields_set.isdisjoint({"database_url", "database_host"})

    def _url_as(self, user: str, secret: str) -> str:
        place = self.database_host, self.database_port
        return database_url(user, secret, *place, self.database_name)

    def kept_secret(self, name: str) -> str | None:
        """Return a secret that `up` generated into `DATA_DIR`, or None."""
        try:
            return (self.data_path / name).read_text(encoding="utf-8").strip() or None
        except (OSError, UnicodeDecodeError):
            return None

    def rate_for(self, endpoint: str) -> Rate:
        """Return the rate of a path such as `/analytics/llm`."""
        name = variable_part(endpoint).strip("_")
        return Rate.parse(self.rate_limits.get(name, self.rate_limit))

    @property
    def event_ttls(self) -> EventTtls:
        """How long events are kept, by type."""
        return EventTtls(self.log_ttl_days, self.log_ttls_days)

    @property
    def ledger_days(self) -> int:
        """How long the ledger is kept, never for less than the events; 0: for good."""
        return longest_of((self.ledger_ttl_days, self.event_ttls.longest))

    @property
    def sums_days(self) -> int:
        """How long sums are kept, likewise."""
        return longest_of((self.rollup_ttl_days, self.event_ttls.longest))


def _environment() -> dict[str, str]:
    kept = dotenv_values(project_root() / ".env", encoding="utf-8")
    merged = {**kept, **os.environ}
    return {name.upper(): value for name, value in merged.items() if value}


def _of_prefix(prefix: str, environment: dict[str, str]) -> dict[str, str]:
    return {
        name.removeprefix(prefix): value
        for name, value in environment.items()
        if name.startswith(prefix)
    }


_Settings = TypeVar("_Settings", bound=Settings)


@overload
def load_settings() -> Settings: ...
@overload
def load_settings(kind: type[_Settings]) -> _Settings: ...
def load_settings(kind: type[Settings] = Settings) -> Settings:
    """Read the environment and `.env`; the environment wins, an empty value counts as absent.

    `kind` may have more settings than all processes have. Raises SettingsError, one line that names
    the variable, its value and what is allowed.
    """
    environment = _environment()
    try:
        return kind.model_validate(
            {
                "rate_limits": _of_prefix("RATE_LIMIT_", environment),
                "log_ttls_days": _of_prefix("LOG_TTL_DAYS_", environment),
            }
        )
    except ValidationError as error:
        raise SettingsError(_one_line(error, kind)) from None


_SECRET = re.compile(r"(API_KEY|HASH_KEY|PASSWORD|PEPPER|URL)$")


def _one_line(error: ValidationError, kind: type[Settings]) -> str:
    fault = error.errors()[0]
    if not fault["loc"]:
        return fault["msg"].removeprefix("Value error, ")
    name = "_".join(str(part) for part in fault["loc"]).upper()
    name = name.replace("RATE_LIMITS_", "RATE_LIMIT_").replace("LOG_TTLS_DAYS_", "LOG_TTL_DAYS_")
    hidden = _SECRET.search(name) and not name.startswith("QUERY_REQUIRE")
    value = "(not shown)" if hidden else repr(fault["input"])
    allowed = fault["msg"].removeprefix("Value error, ").replace("Input should be", "has to be")
    field = kind.model_fields.get(name.lower())
    meaning = f" ({field.description})" if field and field.description else ""
    return f"{name}={value} cannot be used: {allowed}{meaning}"

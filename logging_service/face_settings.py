"""The settings of the HTTP faces: who may reach them from where, under which name, over TLS."""

import re
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator
from pydantic_settings import BaseSettings

from logging_service.client_address import read_networks
from logging_service.hosts import read_host_names

_ORIGIN = re.compile(r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_MOST_CHARACTERS = 4000

FACES = ("producer", "query_service", "gateway", "metrics")


def read_origins(text: str) -> tuple[str, ...]:
    """Read origins such as `https://app.example.com`, separated by commas, as browsers send them.

    Raises ValueError for anything else, also for `*`: keys travel in headers.
    """
    origins = tuple(part.strip().lower() for part in text.split(",") if part.strip())
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(
                f"{origin!r} is no origin: exact ones, such as https://app.example.com, and no *"
            )
    return origins


def _origins(text: str) -> str:
    read_origins(text)
    return text


def _host_names(text: str) -> str:
    read_host_names(text)
    return text


def _networks(text: str) -> str:
    read_networks(text)
    return text


def check_http_url(url: str) -> str:
    """Return `url`; raises ValueError unless it is http:// or https:// with a host and no login."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
        raise ValueError("allowed is http://host… or https://host…, without a login")
    if parts.port == 0:  # one that is no number raises ValueError too
        raise ValueError("a port has to be a number from 1 to 65535")
    return url


HttpUrl = Annotated[str, Field(max_length=2000), AfterValidator(check_http_url)]


class FaceSettings(BaseSettings):
    """What all HTTP faces have in common, and the certificate of each."""

    root_path: str = Field(
        default="",
        max_length=200,
        pattern=r"^(/[A-Za-z0-9._~-]+)*$",
        description="the path before ours that a proxy takes away, such as /logging",
    )
    cors_origins: Annotated[str, AfterValidator(_origins)] = Field(
        default="",
        max_length=_MOST_CHARACTERS,
        description="origins whose pages may ask, separated by commas; none: CORS is off",
    )
    allowed_hosts: Annotated[str, AfterValidator(_host_names)] = Field(
        default="",
        max_length=_MOST_CHARACTERS,
        description="further names that a Host header may have, separated by commas",
    )
    trusted_proxies: Annotated[str, AfterValidator(_networks)] = Field(
        default="",
        max_length=_MOST_CHARACTERS,
        description="addresses and networks whose forwarding headers are believed",
    )
    logging_service_url: HttpUrl = Field(
        default="http://localhost:8001/log", description="where clients send events"
    )
    query_service_url: HttpUrl = Field(
        default="http://localhost:8002", description="where the gateway asks for a review's events"
    )
    gateway_url: HttpUrl | None = Field(
        default=None,
        description="where `review` finds the gateway; default: by GATEWAY_HOST and _PORT",
    )
    producer_tls_cert: Path | None = Field(default=None, description="PEM, with its chain")
    producer_tls_key: Path | None = Field(default=None, description="PEM")
    query_service_tls_cert: Path | None = Field(default=None, description="PEM, with its chain")
    query_service_tls_key: Path | None = Field(default=None, description="PEM")
    gateway_tls_cert: Path | None = Field(default=None, description="PEM, with its chain")
    gateway_tls_key: Path | None = Field(default=None, description="PEM")
    metrics_tls_cert: Path | None = Field(default=None, description="PEM, with its chain")
    metrics_tls_key: Path | None = Field(default=None, description="PEM")

    @model_validator(mode="after")
    def _certificates_have_keys(self) -> Self:
        for face in FACES:
            names = (f"{face}_tls_cert", f"{face}_tls_key")
            given = [name.upper() for name in names if getattr(self, name) is not None]
            if len(given) == 1:
                missing = next(name.upper() for name in names if name.upper() not in given)
                raise ValueError(f"{given[0]} cannot be used without {missing}: set both or none")
        return self

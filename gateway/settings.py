"""The gateway's settings: those of every face, the model that is asked, what a review may take."""

import os
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from logging_service.face_settings import HttpUrl
from logging_service.settings import HeaderSecret, Settings, TtlDays

Adapter = Literal["openai", "anthropic"]
Dollars = Annotated[Decimal, Field(ge=0, le=1_000_000, max_digits=15, decimal_places=9)]

_DEFAULT_BASE_URL = {
    "openai": "https://api.openai.com/v1",
    "anthropic": "https://api.anthropic.com",
}


class GatewaySettings(Settings):
    """The settings of the gateway; without LLM_MODEL it reviews by static analysis alone."""

    llm_model: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="the model that reviews; none: no code leaves this host",
    )
    llm_base_url: HttpUrl | None = Field(
        default=None, description="the model's server; default: the public one of LLM_ADAPTER"
    )
    llm_api_key: HeaderSecret | None = Field(
        default=None, min_length=1, max_length=1000, description="the key of the model's server"
    )
    llm_adapter: Adapter = Field(
        default="openai", description="the API that the server speaks: openai or anthropic"
    )
    llm_provider: str | None = Field(
        default=None,
        max_length=100,
        pattern=r"^[A-Za-z0-9._-]+$",
        description="whose prices hold; default: by LLM_BASE_URL",
    )
    llm_timeout_seconds: int = Field(
        default=60, ge=1, le=300, description="seconds for the model, all attempts together"
    )
    llm_max_attempts: int = Field(default=3, ge=1, le=10, description="calls for one review")
    llm_max_tokens: int = Field(
        default=2000, ge=100, le=100_000, description="tokens that one answer may have"
    )
    llm_max_cost_per_review: Dollars = Field(
        default=Decimal("0.25"), description="US dollars that one review's calls may cost"
    )
    llm_max_cost_per_day: Dollars = Field(
        default=Decimal(10), description="US dollars that a day's calls (UTC) may cost"
    )

    logging_enabled: bool = Field(
        default=True, description="false: nothing is told to the logging service"
    )
    store_code: bool = Field(
        default=False, description="true: the submitted code is kept with the review"
    )
    review_ttl_days: TtlDays | None = Field(
        default=None, description="days that reviews are kept; 0 keeps them; default: LOG_TTL_DAYS"
    )
    reviews_at_once: int = Field(
        default=16, ge=1, le=256, description="reviews under work at the same time"
    )
    reviews_waiting: int = Field(
        default=100, ge=0, le=1_000, description="reviews that may wait; more get 429"
    )

    @model_validator(mode="after")
    def _model_is_whole(self) -> Self:
        if self.llm_model is None:
            for name in ("llm_base_url", "llm_api_key"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name.upper()} cannot be used without LLM_MODEL")
        elif self.llm_base_url is None and self.llm_api_key is None:
            raise ValueError("LLM_MODEL cannot be used without LLM_API_KEY or LLM_BASE_URL")
        return self

    def hand_on_to_client(self) -> None:
        """Put into the environment what `logging_helper`, which reads that alone, needs of this.

        In an installed package it looks for no `.env`.
        """
        os.environ["LOGGING_SERVICE_URL"] = self.logging_service_url
        os.environ["LOGGING_ENABLED"] = str(self.logging_enabled).lower()
        if self.api_key is not None:
            os.environ["API_KEY"] = self.api_key.get_secret_value()

    @property
    def model_address(self) -> str:
        """The URL of the model's server."""
        return self.llm_base_url or _DEFAULT_BASE_URL[self.llm_adapter]

    @property
    def review_ttl(self) -> timedelta | None:
        """How long a review is kept; None: for good."""
        days = self.log_ttl_days if self.review_ttl_days is None else self.review_ttl_days
        return timedelta(days=days) if days else None

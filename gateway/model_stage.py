"""The model stage as the settings want it: which model, whose prices, how much it may cost."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, date, datetime
from decimal import Decimal

import structlog

from code_reviewer.budget import Budget
from code_reviewer.llm import LlmLimits, LlmStage
from code_reviewer.models import Model, open_model
from gateway.scrubbing import Scrubber
from gateway.settings import GatewaySettings
from gateway.tariff import ListTariff, provider_of
from logging_service.backends import open_prices, redaction_rules_of
from logging_service.errors import LoggingServiceError, SettingsError

_log = structlog.get_logger()

_FOLLOW_SECONDS = 60.0

SpentNanos = Callable[[date], Awaitable[int]]


@asynccontextmanager
async def open_llm_stage(settings: GatewaySettings, spent: SpentNanos) -> AsyncIterator[LlmStage]:
    """Yield the model stage; without LLM_MODEL it asks nobody.

    `spent` returns the nano-dollars that all gateways have spent on a day: it is asked each minute,
    so that they keep to one budget together. Raises SettingsError for a model that cannot be used.
    """
    budget = Budget(
        per_review_nanos=_nanos(settings.llm_max_cost_per_review),
        per_day_nanos=_nanos(settings.llm_max_cost_per_day),
    )
    async with AsyncExitStack() as stack:
        model = await _open_model(settings, stack) if settings.llm_model else None
        if model is not None:
            following = asyncio.create_task(_follow(budget, spent))
            stack.callback(following.cancel)
        yield LlmStage(
            model,
            ListTariff(open_prices(settings)),
            Scrubber(redaction_rules_of(settings)),
            budget,
            limits=LlmLimits(
                deadline_seconds=settings.llm_timeout_seconds,
                max_attempts=settings.llm_max_attempts,
                max_tokens=settings.llm_max_tokens,
            ),
        )


async def check_model(settings: GatewaySettings) -> None:
    """Raise SettingsError for a model that cannot be used; its server is not asked."""
    async with AsyncExitStack() as stack:
        if settings.llm_model:
            await _open_model(settings, stack)


async def _open_model(settings: GatewaySettings, stack: AsyncExitStack) -> Model:
    key, address = settings.llm_api_key, settings.model_address
    # The price data take half a second to load, which the first review should not wait for.
    provider = await asyncio.to_thread(provider_of, address, settings.llm_provider)
    opened = open_model(
        settings.llm_adapter,
        base_url=address,
        api_key=key.get_secret_value() if key else None,
        name=settings.llm_model or "",
        provider=provider,
    )
    try:
        return await stack.enter_async_context(opened)
    except ValueError as error:
        name = settings.llm_adapter
        raise SettingsError(f"LLM_ADAPTER={name!r} cannot be used: {error}") from None


def _nanos(dollars: Decimal) -> int:
    return int(dollars.scaleb(9))


async def _follow(budget: Budget, spent: SpentNanos) -> None:
    while True:
        day = datetime.now(UTC).date()
        try:
            budget.restore(day, await spent(day))
        except LoggingServiceError as error:
            _log.info("spending_not_read", reason=str(error))
        await asyncio.sleep(_FOLLOW_SECONDS)

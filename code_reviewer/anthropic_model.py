"""Anthropic's own API; its compatible one is not meant for production."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

try:
    from anthropic import AsyncAnthropic
except ImportError:
    raise ValueError(
        "the adapter `anthropic` needs its extra: pip install 'logging-service[anthropic]'"
    ) from None

from code_reviewer.model_http import model_error, open_http
from code_reviewer.model_json import json_object, mapping, text_of, word
from code_reviewer.models import Manner, Question, Reply


@asynccontextmanager
async def open_anthropic_model(
    *, base_url: str, api_key: str | None, name: str, provider: str
) -> AsyncIterator["AnthropicModel"]:
    """Open a model; raises ValueError without a key."""
    if not api_key:
        raise ValueError("the adapter `anthropic` needs a key")
    async with open_http(base_url) as http:
        client = AsyncAnthropic(base_url=base_url, api_key=api_key, max_retries=0, http_client=http)
        yield AnthropicModel(client, api_key, base_url, name, provider)


class AnthropicModel:
    """A model behind an address with Anthropic's API."""

    first_manner = Manner(temperature=False)

    def __init__(
        self, client: AsyncAnthropic, api_key: str, address: str, name: str, provider: str
    ) -> None:
        self.name = name
        self.provider = provider
        self.address = address
        self._client = client
        self._api_key = api_key

    async def complete(
        self, question: Question, manner: Manner, max_tokens: int, seconds: float
    ) -> Reply:
        """Ask once; raises ModelError. This API knows a schema or nothing."""
        asked: dict[str, Any] = {}
        if manner.form == "json_schema":
            asked["output_config"] = {"format": {"type": "json_schema", "schema": question.schema}}
        try:
            answer = await self._client.messages.with_raw_response.create(
                model=self.name,
                max_tokens=max_tokens,
                system=question.rules,
                messages=[{"role": "user", "content": question.request}],
                timeout=seconds,
                **asked,
            )
        except Exception as error:  # noqa: BLE001 - a library raises what it likes
            raise model_error(error, self._api_key) from None
        return _reply(answer.http_response.content, answer.http_response.status_code)


def _reply(body: bytes, status: int) -> Reply:
    answer = json_object(body, status)
    return Reply(
        text_of(answer.get("content")),
        mapping(answer.get("usage")) or None,
        word(answer.get("model")),
        word(answer.get("stop_reason")),
        status,
    )

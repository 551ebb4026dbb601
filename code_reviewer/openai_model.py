"""Any server that speaks OpenAI's chat completions."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

try:
    from openai import AsyncOpenAI
except ImportError:
    raise ValueError(
        "the adapter `openai` needs its extra: pip install 'logging-service[reviewer]'"
    ) from None

from code_reviewer.model_http import model_error, open_http
from code_reviewer.model_json import json_object, mapping, text_of, word
from code_reviewer.models import Manner, Question, Reply

_OWN_HOST: Final = "api.openai.com"


@asynccontextmanager
async def open_openai_model(
    *, base_url: str, api_key: str | None, name: str, provider: str
) -> AsyncIterator["OpenAIModel"]:
    """Open a model; a server without keys gets the word `none` as one."""
    async with open_http(base_url) as http:
        client = AsyncOpenAI(
            base_url=base_url, api_key=api_key or "none", max_retries=0, http_client=http
        )
        # The library takes these from its own variables, and they are nobody else's business.
        client.organization = client.project = None
        yield OpenAIModel(client, api_key, base_url, name, provider)


class OpenAIModel:
    """A model behind an address with OpenAI's API."""

    def __init__(
        self, client: AsyncOpenAI, api_key: str | None, address: str, name: str, provider: str
    ) -> None:
        self.name = name
        self.provider = provider
        self.address = address
        # Its newer models know the new name alone, other servers often the old one alone.
        is_own = urlsplit(address).hostname == _OWN_HOST
        self.first_manner = Manner(tokens="max_completion_tokens" if is_own else "max_tokens")
        self._client = client
        self._api_key = api_key

    async def complete(
        self, question: Question, manner: Manner, max_tokens: int, seconds: float
    ) -> Reply:
        """Ask once; raises ModelError."""
        asked: dict[str, Any] = {manner.tokens: max_tokens}
        if manner.temperature:
            asked["temperature"] = 0
        if manner.form != "text":
            asked["response_format"] = _response_format(manner, question)
        try:
            answer = await self._client.chat.completions.with_raw_response.create(
                model=self.name,
                messages=[
                    {"role": "system", "content": question.rules},
                    {"role": "user", "content": question.request},
                ],
                timeout=seconds,
                **asked,
            )
        except Exception as error:  # noqa: BLE001 - a library raises what it likes
            raise model_error(error, self._api_key) from None
        return _reply(answer.http_response.content, answer.http_response.status_code)


def _response_format(manner: Manner, question: Question) -> dict[str, object]:
    if manner.form == "json_object":
        return {"type": "json_object"}
    schema = {"name": "review", "strict": True, "schema": question.schema}
    return {"type": "json_schema", "json_schema": schema}


def _reply(body: bytes, status: int) -> Reply:
    """Return the first choice; its text is empty where there is none."""
    answer = json_object(body, status)
    choices = answer.get("choices")
    choice = mapping(choices[0] if isinstance(choices, list) and choices else None)
    usage = mapping(answer.get("usage"))
    if usage and isinstance(answer.get("service_tier"), str):
        usage = {"service_tier": answer["service_tier"], **usage}
    return Reply(
        text_of(mapping(choice.get("message")).get("content")),
        usage or None,
        word(answer.get("model")),
        word(choice.get("finish_reason")),
        status,
    )

"""Reads what a model's server answered, without belief in its form."""

from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json

from code_reviewer.models import ModelError


def json_object(body: bytes, status: int) -> Mapping[str, Any]:
    """Return the object that a body is; raises ModelError for anything else."""
    try:
        answer = from_json(body, allow_inf_nan=False)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        message = f"the model's server answered {status} with something that is not a JSON object"
        raise ModelError("unreadable", message, http_status=status)
    return answer


def mapping(value: object) -> Mapping[str, Any]:
    """Return an object of JSON; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def word(value: object) -> str | None:
    """Return a short text, None for anything else."""
    return value[:200] if isinstance(value, str) else None


def text_of(content: object) -> str:
    """Return the text of a message, which may come in parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [mapping(part).get("text") for part in parts if mapping(part).get("type") == "text"]
    return "".join(text for text in texts if isinstance(text, str))

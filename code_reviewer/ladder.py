"""How each server wants to be asked, learnt from what it refuses."""

from collections import OrderedDict
from typing import Final

import msgspec

from code_reviewer.models import AnswerForm, Manner, Model, ModelError

MOST_SERVERS: Final = 100
MOST_STEPS: Final = 4
"""In one review: two forms, another name for the tokens, no temperature."""
_BELOW: Final[dict[AnswerForm, AnswerForm]] = {"json_schema": "json_object", "json_object": "text"}


class Ladder:
    """Remembers the manner that an address and model answered to; the oldest are forgotten."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], Manner] = OrderedDict()

    def manner(self, model: Model) -> Manner:
        """Return how to ask a model."""
        return self._known.get((model.address, model.name), model.first_manner)

    def remember(self, model: Model, manner: Manner) -> None:
        """Note that a model has answered to this manner."""
        self._known[model.address, model.name] = manner
        self._known.move_to_end((model.address, model.name))
        if len(self._known) > MOST_SERVERS:
            self._known.popitem(last=False)


def step_down(manner: Manner, error: ModelError) -> Manner | None:
    """Return a manner without what the server refused, None where that was not the reason."""
    if error.refused == "form" and manner.form != "text":
        return msgspec.structs.replace(manner, form=_BELOW[manner.form])
    if error.refused == "tokens":
        other = "max_tokens" if manner.tokens != "max_tokens" else "max_completion_tokens"
        return msgspec.structs.replace(manner, tokens=other)
    if error.refused == "temperature" and manner.temperature:
        return msgspec.structs.replace(manner, temperature=False)
    return None

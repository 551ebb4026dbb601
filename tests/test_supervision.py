"""What dies is started again, a little later each time."""

import asyncio

import pytest

from logging_service.errors import BackendUnavailable, SettingsError
from logging_service.supervision import keep_running


class Failing:
    """Something that ends `failures` times before it answers, and then goes on."""

    name = "failing"

    def __init__(self, failures: int, error: Exception) -> None:
        self._left = failures
        self._error = error

    async def start(self) -> None:
        if self._left:
            self._left -= 1
            raise self._error

    async def wait(self) -> int:
        await asyncio.Event().wait()
        return 0

    async def stop(self, _seconds: float) -> None: ...

    def hurry(self) -> None: ...


async def test_pauses_grow_from_nothing() -> None:
    said: list[str] = []
    answers = asyncio.Event()
    failing = Failing(3, BackendUnavailable("ended with code 1"))
    kept = asyncio.create_task(keep_running(failing, said.append, answers, patient=True))
    await asyncio.wait_for(answers.wait(), 10)
    kept.cancel()
    assert [line.removeprefix("failing ended with code 1; ") for line in said] == [
        "starting it again at once",
        "starting it again in 0.2 s",
        "starting it again in 0.4 s",
    ]


@pytest.mark.parametrize(
    ("error", "patient"),
    [(BackendUnavailable(), False), (SettingsError(), False), (SettingsError(), True)],
)
async def test_a_first_start_that_cannot_succeed_is_not_repeated(
    error: Exception,
    patient: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    with pytest.raises(type(error)):
        await keep_running(Failing(1, error), print, asyncio.Event(), patient=patient)

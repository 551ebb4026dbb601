"""Asks sentinels which server is the master of a service."""

import asyncio
from contextlib import suppress
from typing import NamedTuple

from logging_service.errors import BackendUnavailable
from logging_service.redis_address import Place, RedisAddress
from logging_service.resp import connect, pack, raise_first_error

_ASK_SECONDS = 0.5
_WATCH_SECONDS = 1.0


class Master(NamedTuple):
    """A master's place, and the number of the configuration that made it master."""

    configuration: int
    place: Place


async def find_master(address: RedisAddress, *, ask_all: bool = False) -> Master:
    """Return the master of the latest configuration that a sentinel knows.

    All are asked at once. The answers of more than half are enough unless `ask_all`; after half a
    second one is. Raises BackendUnavailable when there is none.
    """
    asked = [asyncio.create_task(_ask(place, address)) for place in address.places]
    enough = len(asked) if ask_all else len(asked) // 2 + 1
    answers: list[Master] = []
    reason = "no answer in time"
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(_ASK_SECONDS):
                for answer in asyncio.as_completed(asked):
                    try:
                        answers.append(await answer)
                    except BackendUnavailable as error:
                        reason = str(error).removeprefix("redis: ")
                    if len(answers) == enough:
                        break
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    if not answers:
        service = address.service
        raise BackendUnavailable(f"redis: no sentinel knows the master of {service}: {reason}")
    return max(answers)


async def until_replaced(master: Master, address: RedisAddress) -> None:
    """Return when the sentinels have made another server the master.

    The old one may not know it for ten seconds more, and what it takes until then is lost.
    """
    while True:
        await asyncio.sleep(_WATCH_SECONDS)
        with suppress(BackendUnavailable):
            latest = await find_master(address, ask_all=True)
            if latest > master and latest.place != master.place:
                return


async def _ask(place: Place, address: RedisAddress) -> Master:
    password, service = address.sentinel_password, str(address.service)
    introduction = [pack(("AUTH", password))] if password else []
    connection = await connect(place, address.tls, introduction)
    # The first has the number, the second knows a new master as soon as it is promoted.
    questions = ("MASTER", "GET-MASTER-ADDR-BY-NAME")
    packed = b"".join(pack(("SENTINEL", question, service)) for question in questions)
    try:
        replies = await connection.call(packed, len(questions))
    finally:
        connection.end("asked")
    raise_first_error(replies)
    try:
        known = dict(zip(replies[0][::2], replies[0][1::2], strict=True))
        host, port = replies[1]
        return Master(int(known[b"config-epoch"]), Place(host.decode(), int(port)))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BackendUnavailable(f"redis: {place.host}:{place.port} is no sentinel") from error

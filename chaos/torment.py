"""What goes wrong: processes killed, stopped and paused, networks that lose, delay and refuse."""

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import psutil

from chaos.pipeline import CONSUMERS, PRODUCERS, Pipeline, Say
from chaos.proxy import Proxy

# Done with dice of its own; says whether there was something to do it to.
Deed = Callable[[random.Random], Awaitable[bool]]
Choose = Callable[[list[psutil.Process], random.Random], list[psutil.Process]]

_FAULTS_PER_KILL = 1.5
_SHORTEST_SECONDS, _LONGEST_SECONDS = 1.0, 8.0
_SHORTEST_DELAY, _LONGEST_DELAY = 0.01, 0.4
# What ends a transaction; a script is one by itself.
_LAST_WORDS = {"postgres": (b"COMMIT",), "valkey": (b"EXEC\r\n", b"EVALSHA")}
_SERVERS = ("valkey", "postgres")


class Bag:
    """Returns things in random order: each once before any comes again."""

    def __init__(self, things: Sequence[str], rng: random.Random) -> None:
        self._things = things
        self._rng = rng
        self._left: list[str] = []

    def next(self) -> str:
        """Return one of those that are left, all of them when none is."""
        if not self._left:
            self._left = self._rng.sample(self._things, len(self._things))
        return self._left.pop()


def _everyone(running: list[psutil.Process], _dice: random.Random) -> list[psutil.Process]:
    return running


def _first(running: list[psutil.Process], _dice: random.Random) -> list[psutil.Process]:
    return running[:1]


def _one_child(running: list[psutil.Process], dice: random.Random) -> list[psutil.Process]:
    return [dice.choice(running[1:])] if running[1:] else []


class Torment:
    """Does random things at random times to a pipeline; `kills` and `done` count them."""

    def __init__(self, pipeline: Pipeline, seed: int, kills_per_minute: float, say: Say) -> None:
        self.kills = 0
        self.done: Counter[str] = Counter()
        self._pipeline = pipeline
        self._seed = seed
        self._kills_per_minute = kills_per_minute
        self._say = say

    async def run(self, seconds: float) -> None:
        """Go on for `seconds`; afterwards nothing is paused and every network is well."""
        often = self._kills_per_minute
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds), asyncio.TaskGroup() as going:
                    going.create_task(self._go_on(self._killings(), often, going))
                    often *= _FAULTS_PER_KILL
                    going.create_task(self._go_on(self._faults(), often, going))
        finally:
            await self._mend_all()

    async def _go_on(
        self, deeds: dict[str, Deed], per_minute: float, going: asyncio.TaskGroup
    ) -> None:
        rng = random.Random(f"{self._seed} {list(deeds)}")  # noqa: S311 - not a secret
        bag = Bag(list(deeds), rng)
        while True:
            await asyncio.sleep(rng.expovariate(per_minute / 60))
            name = bag.next()
            dice = random.Random(rng.getrandbits(64))  # noqa: S311 - not a secret
            going.create_task(self._do(name, deeds[name], dice))

    async def _do(self, name: str, deed: Deed, dice: random.Random) -> None:
        self._say(name)
        if await deed(dice):
            self.done[name] += 1
        else:
            self._say(f"{name}: there is nothing to do it to")

    def _killings(self) -> dict[str, Deed]:
        chosen: list[tuple[str, str, Choose]] = [
            *((name, name, _everyone) for name in (*PRODUCERS, *CONSUMERS, "valkey")),
            ("a worker of producer-2", "producer-2", _one_child),
            ("postgres", "postgres", _first),
            ("a process of postgres", "postgres", _one_child),
        ]
        return {f"kill {what}": self._killing(name, choose) for what, name, choose in chosen}

    def _killing(self, name: str, choose: Choose) -> Deed:
        async def kill(dice: random.Random) -> bool:
            killed = _send(choose(self._pipeline.processes(name), dice), signal.SIGKILL)
            self.kills += killed
            return killed

        return kill

    def _faults(self) -> dict[str, Deed]:
        deeds: dict[str, Deed] = {}
        for name in (*PRODUCERS, *CONSUMERS):
            deeds[f"SIGTERM {name}"] = self._signalling(name, signal.SIGTERM)
        for name in PRODUCERS:
            deeds[f"SIGHUP {name}"] = self._signalling(name, signal.SIGHUP)
        for name in (*PRODUCERS, *CONSUMERS, *_SERVERS):
            deeds[f"pause {name}"] = self._pausing(name, _everyone)
        deeds["pause a worker of producer-2"] = self._pausing("producer-2", _one_child)
        for server in _SERVERS:
            deeds |= self._network_faults(server)
        return deeds

    def _signalling(self, name: str, number: signal.Signals) -> Deed:
        async def send(dice: random.Random) -> bool:
            return _send(_first(self._pipeline.processes(name), dice), number)

        return send

    def _pausing(self, name: str, choose: Choose) -> Deed:
        async def pause(dice: random.Random) -> bool:
            paused = choose(self._pipeline.processes(name), dice)
            try:
                found = _send(paused, signal.SIGSTOP)
                await asyncio.sleep(_some_seconds(dice) if found else 0)
            finally:
                _send(paused, signal.SIGCONT)
            return found

        return pause

    def _network_faults(self, server: str) -> dict[str, Deed]:
        def delay(proxy: Proxy, dice: random.Random) -> None:
            proxy.delay_seconds = dice.uniform(_SHORTEST_DELAY, _LONGEST_DELAY)

        def go_half_open(proxy: Proxy, _dice: random.Random) -> None:
            proxy.is_half_open = True

        def refuse(proxy: Proxy, _dice: random.Random) -> None:
            proxy.refuse()

        def reset(proxy: Proxy, _dice: random.Random) -> None:
            proxy.reset()

        def lose_answer(proxy: Proxy, _dice: random.Random) -> None:
            proxy.lose_answer(_LAST_WORDS[server])

        return {
            f"delay to {server}": self._misbehaving(server, delay),
            f"half-open to {server}": self._misbehaving(server, go_half_open),
            f"no way to {server}": self._misbehaving(server, refuse),
            f"reset to {server}": self._misbehaving(server, reset, lasts=False),
            f"lost answer of {server}": self._misbehaving(server, lose_answer, lasts=False),
        }

    def _misbehaving(
        self, server: str, begin: Callable[[Proxy, random.Random], None], *, lasts: bool = True
    ) -> Deed:
        async def misbehave(dice: random.Random) -> bool:
            proxies = self._pipeline.proxies[server]
            met = proxies if dice.random() < 0.5 else [dice.choice(proxies)]  # noqa: PLR2004
            try:
                for proxy in met:
                    begin(proxy, dice)
                await asyncio.sleep(_some_seconds(dice) if lasts else 0)
            finally:
                if lasts:
                    for proxy in met:
                        await proxy.mend()
            return True

        return misbehave

    async def _mend_all(self) -> None:
        for proxies in self._pipeline.proxies.values():
            for proxy in proxies:
                await proxy.mend()

    def lost_answers(self) -> dict[str, int]:
        """Return how many answers of each server have been lost."""
        return {
            server: sum(proxy.lost_answers for proxy in proxies)
            for server, proxies in self._pipeline.proxies.items()
        }


def _some_seconds(dice: random.Random) -> float:
    return dice.uniform(_SHORTEST_SECONDS, _LONGEST_SECONDS)


def _send(processes: Sequence[psutil.Process], number: signal.Signals) -> bool:
    """Send a signal to those that still run; whether one did."""
    sent = False
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
            sent = True
    return sent

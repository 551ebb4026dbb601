"""A process that puts numbered events into a spool file and says which were acknowledged.

`spool_process.py FILE shared|exclusive [NUMBER]`; without a number it goes on until it is killed.
"""

import asyncio
import sys
from itertools import count
from pathlib import Path

from events_made import an_event

from logging_service.spool_queue import open_spool_queue


async def put(file: Path, *, exclusive: bool, numbers: int | None) -> None:
    async with open_spool_queue(file, max_bytes=1 << 30, exclusive=exclusive) as queue:
        for number in count() if numbers is None else range(numbers):
            await queue.put([an_event(payload={"number": number})])
            print(number, flush=True)


if __name__ == "__main__":
    wanted = int(sys.argv[3]) if len(sys.argv) > 3 else None
    asyncio.run(put(Path(sys.argv[1]), exclusive=sys.argv[2] == "exclusive", numbers=wanted))

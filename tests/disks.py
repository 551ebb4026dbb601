"""A disk under SQLite that counts and fails as a test tells it to."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import apsw


class Disk:
    """What the disk does: each of `failing` raises, from `after` such calls on, on any file."""

    def __init__(self) -> None:
        self.failing: dict[str, type[Exception]] = {}
        self.after = 0
        self.syncs = 0
        self.writes = 0

    def asked(self, what: str) -> None:
        """Count a call, and fail where the test says so."""
        if what == "sync":
            self.syncs += 1
        if what == "write":
            self.writes += 1
        if error := self.failing.get(what):
            if self.after > 0:
                self.after -= 1
                return
            raise error(f"the disk fails to {what}")


@contextmanager
def a_disk() -> Iterator[Disk]:
    """Yield the disk under every SQLite file that is opened from now on."""
    disk = Disk()
    name, system = f"disk-{id(disk)}", apsw.vfs_names()[0]

    class File(apsw.VFSFile):
        def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802 - SQLite's name
            disk.asked("write")
            super().xWrite(data, offset)

        def xSync(self, flags: int) -> None:  # noqa: N802 - SQLite's name
            disk.asked("sync")
            super().xSync(flags)

    class Vfs(apsw.VFS):
        def __init__(self) -> None:
            super().__init__(name, base=system, makedefault=True)

        def xOpen(self, file: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - SQLite's name
            return File(system, file, flags)

    vfs = Vfs()
    try:
        yield disk
    finally:
        vfs.unregister()

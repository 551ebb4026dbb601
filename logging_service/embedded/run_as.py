"""As whom PostgreSQL runs: it refuses root, and no account is made for it."""

import os
import pwd
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from logging_service.embedded.server import ENVIRONMENT
from logging_service.errors import SettingsError


class RunAs(NamedTuple):
    """The user that owns the database's files, and how a program is started as that user."""

    user: int
    prefix: tuple[str, ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        """What the start of a process needs to become that user."""
        if self.prefix or self.user == os.geteuid():
            return {}
        return {"user": self.user, "group": pwd.getpwuid(self.user).pw_gid, "extra_groups": []}

    def works(self, program: Path, folder: Path) -> bool:
        """Whether `program` runs this way and may write into `folder`."""
        check = ("sh", "-c", '"$0" --version && test -w "$1"', str(program), str(folder))
        try:
            return not subprocess.run(  # noqa: S603 - our own words
                (*self.prefix, *check),
                check=False,
                capture_output=True,
                env=ENVIRONMENT,
                cwd="/",
                **self.options,
            ).returncode
        except OSError:
            return False


def owner_of(folder: Path, program: Path) -> RunAs:
    """Return as whom `program` runs to own `folder`, which need not exist yet.

    As root: in a user namespace, so that the files are root's outside; where that is not
    allowed, as `nobody`. Raises SettingsError when there is nobody who could.
    """
    owner = folder.stat().st_uid if folder.exists() else os.geteuid()
    if os.geteuid() and owner != os.geteuid():
        raise SettingsError(
            f"DATA_DIR={folder.parent}: its database belongs to user {owner}, "
            "run as that user or set DATA_DIR to another folder"
        )
    if owner:
        return RunAs(owner)
    number = nobody()
    namespace = ("unshare", "--user", f"--map-user={number}", f"--map-group={number}")
    inside = RunAs(0, namespace)
    if inside.works(program, folder if folder.exists() else folder.parent):
        return inside
    return _give_away(folder, program, number)


def nobody() -> int:
    """Return the number of the user that owns nothing."""
    try:
        return pwd.getpwnam("nobody").pw_uid
    except KeyError:
        return 65534


def _give_away(folder: Path, program: Path, user: int) -> RunAs:
    for place in (*reversed(folder.parent.parents), *reversed(program.parents)):
        if not place.stat().st_mode & 0o001:
            raise SettingsError(
                f"PostgreSQL does not run as root, and user {user} cannot enter {place}: "
                "run as an ordinary user, or set DATABASE_URL to a server of your own"
            )
    folder.parent.chmod(folder.parent.stat().st_mode | 0o011)
    for path in (folder, *folder.rglob("*")) if folder.exists() else ():
        os.chown(path, user, -1, follow_symlinks=False)
    return RunAs(user)

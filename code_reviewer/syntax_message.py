"""What CPython says about code that does not parse: it often guesses what was meant.

It is asked in a child process, since its parser can be made to crash. It does what `ast.parse`
does: no code is made, let alone run. It knows its own version of the language alone.
"""

import sys

import msgspec

from code_reviewer.child import Cages, Fate
from code_reviewer.findings import Place

OWN_VERSION = f"py{sys.version_info.major}{sys.version_info.minor}"

_ONLY_AST = 0x400
_SCRIPT = f"""
import sys
try:
    compile(sys.stdin.buffer.read().decode("utf-8-sig"), "snippet.py", "exec", {_ONLY_AST}, True)
except SyntaxError as e:
    for number in (e.lineno, e.offset, e.end_lineno, e.end_offset):
        print(number or 0)
    print(e.msg)
"""
_COMMAND = (sys.executable, "-I", "-S", "-X", "utf8", "-W", "ignore", "-c", _SCRIPT)


class SyntaxMessage(msgspec.Struct, frozen=True):
    """Where CPython stopped, and what it says about it."""

    start: Place
    end: Place
    message: str


async def syntax_message(cages: Cages, code: bytes) -> SyntaxMessage | None:
    """Return what CPython says about `code`; None: nothing, or it could not be asked."""
    ended = await cages.run(_COMMAND, code)
    if ended.fate is not Fate.DONE or not ended.output:
        return None
    *numbers, message = ended.output.decode("utf-8", "replace").rstrip("\n").split("\n", 4)
    line, column, end_line, end_column = (max(1, int(number)) for number in numbers)
    start = Place(line, column)
    return SyntaxMessage(start, max(start, Place(end_line, end_column)), message)

"""Texts with personal data and secrets, and texts that only look like it; all of it made up.

Nothing here was ever a secret: each value is put together when it is asked for. Some samples are
hard on purpose: a score below 1 says what kind.
"""

import random
import string
from collections.abc import Callable, Iterator
from typing import NamedTuple

from logging_service.redaction import Rules

FIELDS = Rules(fields=frozenset({"email", "ip", "ip_address", "phone", "full_name"}))


class Sample(NamedTuple):
    """A text and what in it is to be found: the rule and the value, or nothing."""

    text: str
    rule: str | None
    value: str = ""


_LETTERS = string.ascii_letters + string.digits
# The same in every run.
_made = random.Random(20_261_123)  # noqa: S311 - nothing of it is a secret


def _some(alphabet: str, number: int) -> str:
    return "".join(_made.choices(alphabet, k=number))


def _word() -> str:
    return _some(string.ascii_lowercase, _made.randint(3, 9))


def _email() -> str:
    local = _made.choice((_word(), f"{_word()}.{_word()}", f"{_word()}+{_word()}", f"{_word()}_7"))
    domain = _made.choice((f"{_word()}.com", f"mail.{_word()}.co.uk", f"{_word()}-{_word()}.io"))
    return f"{local}@{domain}"


def _luhn(digits: str) -> str:
    total = 0
    for place, digit in enumerate(reversed(digits)):
        total += sum(divmod(int(digit) * (1 if place % 2 else 2), 10))
    return digits + str(-total % 10)


def _card() -> str:
    start, length = _made.choice((("4", 16), ("51", 16), ("37", 15), ("6011", 16), ("2300", 16)))
    number = _luhn(start + _some(string.digits, length - len(start) - 1))
    gap = _made.choice(("", " ", "-"))
    return gap.join(number[place : place + 4] for place in range(0, len(number), 4))


def _iban() -> str:
    country, length = _made.choice((("DE", 22), ("GB", 22), ("NL", 18), ("FR", 27), ("NO", 15)))
    account = _some(string.digits, length - 4)
    number = "".join(str(int(each, 36)) for each in account + country + "00")
    whole = f"{country}{98 - int(number) % 97:02}{account}"
    if _made.choice((True, False)):
        return whole
    return " ".join(whole[place : place + 4] for place in range(0, length, 4))


def _phone() -> str:
    return _made.choice(
        (
            f"+49{_some('123456789', 10)}",
            f"+1 ({_some('23456789', 3)}) {_some('23456789', 3)}-{_some(string.digits, 4)}",
            f"+44 20 {_some('123456789', 4)} {_some(string.digits, 4)}",
        )
    )


def _address() -> str:
    if _made.choice((True, False, False)):
        return f"2001:db8:{_some('123456789abcdef', 4)}::{_some('123456789abcdef', 3)}"
    return ".".join(str(_made.randint(1, 223)) for _ in range(4)).replace("127.", "128.", 1)


def _jwt() -> str:
    url_safe = _LETTERS + "-_"
    return f"eyJ{_some(url_safe, 33)}.eyJ{_some(url_safe, 80)}.{_some(url_safe, 43)}"


def _private_key() -> str:
    kind = _made.choice(("RSA ", "EC ", "", "OPENSSH "))
    body = "\n".join(_some(_LETTERS + "+/", 64) for _ in range(5))
    return f"-----BEGIN {kind}PRIVATE KEY-----\n{body}\n-----END {kind}PRIVATE KEY-----"


# Each makes a value: what stands before it in a text, what is to be found, what stands behind it.
_FOUND: dict[str, Callable[[], tuple[str, str, str]]] = {
    "email": lambda: ("", _email(), ""),
    "phone": lambda: ("", _phone(), ""),
    "ip": lambda: ("", _address(), ""),
    "card": lambda: ("", _card(), ""),
    "iban": lambda: ("", _iban(), ""),
    "jwt": lambda: ("", _jwt(), ""),
    "private_key": lambda: ("", _private_key(), ""),
    "aws_key": lambda: ("", "AKIA" + _some(string.ascii_uppercase + string.digits, 16), ""),
    "aws_secret": lambda: ("aws_secret_access_key = ", _some(_LETTERS + "+/", 40), ""),
    "github_token": lambda: ("", "gh" + _made.choice("pousr") + "_" + _some(_LETTERS, 36), ""),
    "slack_token": lambda: ("", f"xoxb-{_some(string.digits, 12)}-{_some(_LETTERS, 24)}", ""),
    "openai_key": lambda: ("", _made.choice(("sk-", "sk-proj-")) + _some(_LETTERS, 48), ""),
    "anthropic_key": lambda: ("", "sk-ant-api03-" + _some(_LETTERS + "-_", 80), ""),
    "google_key": lambda: ("", "AIza" + _some(_LETTERS + "-_", 35), ""),
    "api_key": lambda: (
        "",
        f"lsk_{_some(string.ascii_lowercase + string.digits, 12)}_{_some(_LETTERS, 46)}",
        "",
    ),
    "bearer": lambda: ("Authorization: Bearer ", _some(_LETTERS + "-._", 40), ""),
    "url_password": lambda: (
        f"postgresql://{_word()}:",
        _some(_LETTERS + "%!", 14),
        f"@db.{_word()}.com:5432/x",
    ),
}
RULES = tuple(_FOUND)

# How a value stands in what applications send.
_AROUND = (
    "{}",
    "write to {} today",
    'x = "{}"',
    "({})",
    "first line\n{}\nlast line",
    "key={}; path=/",
    "übermäßig {}, sagte sie",
    "`{}`",
)

# What is none of it, though parts of it look so.
_INNOCENT = (
    "@app.get('/items')\nasync def items(): ...",
    "a @ b.T @ c",
    "std::vector<int> a; abc::def; dead::beef",
    "at 10:20:30 on 2026-11-23T10:20:30.123456Z",
    "commit 3f786850e387550fdab836ed7e6dc881de23001b",
    "0193a5e2-7c1f-7b3a-9d53-3f2b8f1c6d10",
    "total 4111 of 5500, 12.5 % more",
    "order 4111111111111112 is late",
    "the bearer of this letter",
    "http://127.0.0.1:8001/log and http://localhost:8002",
    "https://example.com:8443/path?x=1#top",
    "aa:bb:cc:dd:ee:ff is a hardware address",
    "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
    "DE00 0000 0000 0000 0000 00",
    "version 1.2.3, python 3.11.7",
    "x = 1 + 23456",
    "1763887200000000 microseconds, 9007199254740991",
    "sk-learn and task-oriented, ask-me-anything",
    "git@ is no address, and neither is @home",
    "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
    "AKIA is a prefix, eyJ another",
    "def f(a: int, *, b: str = 'c') -> None: ...",
    "price $1,234.56, ISBN 978-3-16-148410-0",
    "UTC+0200 and GMT+1",
    # Taken for an address and for a phone number, as things are.
    "build 10.4.2.117",
    "offset = base +12345678",
)


# How people write them so that a machine does not see them, or by mistake.
_HARDER: dict[str, Callable[[str], str]] = {
    "email": lambda value: value.replace("@", " (at) "),
    "card": lambda value: value.replace(" ", "").replace("-", "")[:6] + "…" + value[-4:],
    "iban": str.lower,
    "phone": lambda value: "0" + value[3:],
}
_HARD_EACH = 24


def samples(each: int = 24) -> Iterator[Sample]:
    """Yield `each` samples of every rule, and as many without anything to be found."""
    for rule, make in _FOUND.items():
        for number in range(each):
            before, value, behind = make()
            if number % _HARD_EACH == 0 and rule in _HARDER:
                value = _HARDER[rule](value)
            around = _AROUND[number % len(_AROUND)]
            yield Sample(around.format(f"{before}{value}{behind}"), rule, value)
    for number in range(each * len(_FOUND)):
        innocent = _INNOCENT[number % len(_INNOCENT)]
        yield Sample(_AROUND[number % len(_AROUND)].replace("{}", innocent), None)

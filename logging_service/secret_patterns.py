"""What personal data and secrets look like in a text, and what only looks like them."""

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Final, NamedTuple

Span = tuple[int, int] | None
"""The part of a found text that is to be replaced; None: it is not what it looks like."""


class Pattern(NamedTuple):
    """What a rule finds: an RE2 pattern over UTF-8, its edges, and who judges what was found.

    `hint` fits wherever the pattern finds something in a text of JSON as it was sent, where the
    letter of an escape may stand before it; None: what is looked for, without its left edge.
    One that `is_alone` is searched for by itself: its beginning has no bound, and to follow it to
    the text's end again for each hit of another would take quadratic time.
    """

    name: str
    core: bytes
    before: bytes = rb"\b"
    after: bytes = b""
    judge: Callable[[bytes], Span] = lambda found: (0, len(found))
    hint: bytes | None = None
    is_alone: bool = False


def _behind(*marks: bytes) -> Callable[[bytes], Span]:
    """Return a judge for which the secret begins behind the last of the first marks found."""

    def judge(found: bytes) -> Span:
        for mark in marks:
            place = found.rfind(mark)
            if place >= 0:
                return place + len(mark), len(found)
        return 0, len(found)

    return judge


def _password_in_url(found: bytes) -> Span:
    login = found.index(b"://") + 3
    colon = found.index(b":", login)
    return colon + 1, len(found) - 1


_ISSUERS: Final = (
    # What a card's number begins with, from … to, and how many digits it has.
    (b"4", b"4", {13, 16, 19}),
    (b"51", b"55", {16}),
    (b"2221", b"2720", {16}),
    (b"34", b"34", {15}),
    (b"37", b"37", {15}),
    (b"300", b"305", {14}),
    (b"36", b"36", {14}),
    (b"38", b"39", {14, 16}),
    (b"3528", b"3589", {16, 17, 18, 19}),
    (b"50", b"50", {13, 14, 15, 16, 17, 18, 19}),
    (b"56", b"69", {13, 14, 15, 16, 17, 18, 19}),
    (b"62", b"62", {16, 17, 18, 19}),
)


def _card(found: bytes) -> Span:
    """Find the longest card number that ends where digits do: more of them may stand behind it."""
    ends = [place for place in range(len(found), 0, -1) if found[place : place + 1] in b" -"]
    for end in ends:
        digits = bytes(byte for byte in found[:end] if byte not in b" -")
        if found[end - 1 : end] not in b" -" and _is_card(digits):
            return 0, end
    return None


def _is_card(digits: bytes) -> bool:
    if not any(
        since <= digits[: len(since)] <= until and len(digits) in lengths
        for since, until, lengths in _ISSUERS
    ):
        return False
    # Luhn: every second digit from the right counts twice, its own digits added up.
    doubled = (sum(divmod(2 * (digit - 48), 10)) for digit in digits[-2::-2])
    return (sum(doubled) + sum(digit - 48 for digit in digits[::-2])) % 10 == 0


# Of countries whose numbers are often seen; of others any length is taken.
_IBAN_LENGTHS: Final = {
    country: int(digits)
    for digits, countries in {
        "15": "NO",
        "16": "BE",
        "18": "DK FI NL",
        "20": "AT EE LT LU XK",
        "21": "CH HR LI LV",
        "22": "BG DE GB IE RS",
        "23": "AE IL",
        "24": "AD CZ ES RO SA SE SK",
        "25": "PT",
        "26": "IS TR",
        "27": "FR GR IT MC SM",
        "28": "CY HU PL",
        "29": "BR UA",
        "31": "MT",
    }.items()
    for country in countries.split()
}
_SHORTEST_IBAN: Final = 15


def _iban(found: bytes) -> Span:
    places = [place for place, byte in enumerate(found) if byte != ord(" ")]
    length = _IBAN_LENGTHS.get(found[:2].decode(), len(places))
    if len(places) < max(length, _SHORTEST_IBAN):
        return None
    places = places[:length]
    compact = bytes(found[place] for place in places).decode()
    number = "".join(str(int(character, 36)) for character in compact[4:] + compact[:4])
    # ISO 7064, MOD 97-10.
    return (0, places[-1] + 1) if int(number) % 97 == 1 else None


_REACHABLE: Final = [IPv6Network(text) for text in ("2000::/3", "fe80::/10", "fc00::/7")]


def _address(found: bytes) -> Span:
    try:
        address = ip_address(found.decode())
    except ValueError:
        return None
    if isinstance(address, IPv4Address):
        # This host and no host are nobody's.
        nobody = address.is_loopback or address.is_unspecified
        return None if nobody else (0, len(found))
    return (0, len(found)) if _is_reachable(address) else None


def _is_reachable(address: IPv6Address) -> bool:
    # Others look like names of a program: `abc::def`.
    return any(address in network for network in _REACHABLE)


def _aws_secret(found: bytes) -> Span:
    end = len(found) if found[-1:].isalnum() or found[-1:] in b"/+" else len(found) - 1
    return end - 40, end


_CARD: Final = (
    rb"(?:[2-6][0-9]{3}(?:[ -]?[0-9]{4}){2}[ -]?[0-9]{1,4}(?:[ -]?[0-9]{3})?"
    rb"|3[47][0-9]{2}[ -]?[0-9]{6}[ -]?[0-9]{5})"
)
_LABEL: Final = rb"[A-Za-z0-9\x80-\xff-]+"

PATTERNS: Final = (
    Pattern(
        "private_key",
        rb"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,10}-----(?:[^-]|-[^-])*"
        rb"(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,10}-----)?",
        before=b"",
        hint=rb"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY",
    ),
    Pattern(
        "jwt",
        rb"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]*",
        hint=rb"eyJ[A-Za-z0-9_-]{8,}\.eyJ",
        is_alone=True,
    ),
    Pattern(
        "url_password",
        rb"[A-Za-z][A-Za-z0-9+.-]*://[^\s/?#:@\"'<>]*:[^\s/\"'<>]+@",
        judge=_password_in_url,
        hint=rb":\\?/\\?/[^\s/?#:@\"'<>]*:[^\s/\"'<>]+@",
        is_alone=True,
    ),
    Pattern("aws_key", rb"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}", after=rb"\b"),
    Pattern(
        "aws_secret",
        rb"(?i:secret_?access_?key)[\"'\s:=\\]{1,8}[A-Za-z0-9/+]{40}",
        before=b"",
        after=rb"(?:$|[^A-Za-z0-9/+])",
        judge=_aws_secret,
        hint=rb"(?i:secret_?access_?key)",
    ),
    Pattern(
        "github_token",
        rb"(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255})",
        hint=rb"(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{22})",
    ),
    Pattern(
        "slack_token",
        rb"(?:xox[abeoprs]-[A-Za-z0-9-]{10,}|xapp-[A-Za-z0-9-]{10,}"
        rb"|hooks\.slack\.com/(?:services|workflows)/[A-Za-z0-9/_-]{20,})",
        judge=_behind(b"/services/", b"/workflows/"),
        hint=rb"(?:(?:xox[abeoprs]|xapp)-[A-Za-z0-9-]{10}|hooks\.slack\.com\\?/)",
    ),
    Pattern("anthropic_key", rb"sk-ant-[A-Za-z0-9_-]{20,}", hint=rb"sk-ant-[A-Za-z0-9_-]{20}"),
    Pattern("openai_key", rb"sk-[A-Za-z0-9_-]{20,}", hint=rb"sk-[A-Za-z0-9_-]{20}"),
    Pattern("google_key", rb"(?:AIza[A-Za-z0-9_-]{35}|GOCSPX-[A-Za-z0-9_-]{28})"),
    Pattern("api_key", rb"lsk_[a-z0-9]{12}_[A-Za-z0-9]{46}"),
    Pattern(
        "bearer",
        rb"(?i:bearer)\s+[A-Za-z0-9._~+/-]{16,}=*",
        judge=_behind(b" ", b"\t", b"\n"),
        hint=rb"(?i:bearer)(?:\s|\\(?:[nrtf]|u000[9a-dA-D]))+[A-Za-z0-9._~+/\\-]{16}",
    ),
    Pattern(
        "email",
        rb"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~\x80-\xff-]+@(?:"
        + _LABEL
        + rb"\.)+[A-Za-z\x80-\xff]{2,63}",
        before=b"",
        hint=rb"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~\x80-\xff-]@[A-Za-z0-9\\\x80-\xff-]+\.",
        is_alone=True,
    ),
    Pattern(
        "iban",
        rb"[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,30}",
        after=rb"\b",
        judge=_iban,
        hint=rb"[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11}",
    ),
    Pattern(
        "phone",
        rb"\+[1-9](?:[0-9]{7,14}|(?:[ ().-]{0,2}[0-9]){6,14})",
        before=rb"\B",
        after=rb"\b",
        hint=rb"\+[1-9](?:[ ().-]{0,2}[0-9]){6}",
    ),
    Pattern(
        "card",
        _CARD,
        after=rb"\b",
        judge=_card,
        hint=rb"(?:^|[^0-9A-Za-z_]|\\(?:[bfnrt]|u[0-9A-Fa-f]{4}))" + _CARD + rb"\b",
    ),
    Pattern(
        "ip",
        rb"(?:(?:[0-9]{1,3}\.){3}[0-9]{1,3}"
        rb"|(?:[23][0-9A-Fa-f]{3}|[fF][c-eC-E][0-9A-Fa-f]{2}):[0-9A-Fa-f:]{2,34})",
        after=rb"(?:\b|$)",
        judge=_address,
    ),
)
"""The rules for texts, the surest first: where several fit at a place, the first does."""

"""Which address a request comes from, also behind proxies that the operator trusts."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network

# More than any real chain of proxies; a header of 16 KiB could name thousands.
_MOST_HOPS = 20
_MOST_KNOWN = 1024
_FORWARDED_FOR = re.compile(rb"(?i)(?:^|;)\s*for\s*=\s*(\"[^\"]*\"|[^;\s]*)")
_FORWARDED_PROTO = re.compile(rb"(?i)(?:^|;)\s*proto\s*=\s*\"?(https?)\"?\s*(?:;|$)")


def read_networks(text: str) -> tuple[Network, ...]:
    """Read addresses and networks separated by commas; raises ValueError for anything else."""
    return tuple(_network(part.strip()) for part in text.split(",") if part.strip())


def _network(text: str) -> Network:
    try:
        return ip_network(text)
    except ValueError:
        raise ValueError(f"{text!r} is no address and no network such as 10.0.0.0/8") from None


class ClientAddresses:
    """Tells the client's address, and believes only `trusted` proxies about it.

    `X-Forwarded-For` counts before `Forwarded`: proxies that write one of the two let the other one
    pass, so the operator's has to remove what it does not write.
    """

    def __init__(self, trusted: str | Sequence[Network] = ()) -> None:
        networks = read_networks(trusted) if isinstance(trusted, str) else tuple(trusted)
        self._trusts_any = bool(networks)

        @lru_cache(maxsize=_MOST_KNOWN)
        def is_trusted(address: str) -> bool:
            parsed = ip_address(address)
            return any(parsed in network for network in networks)

        self._is_trusted = is_trusted

    def of(self, peer: str | None, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Return the address of who sent a request that came from `peer`, "" where it is unknown.

        `headers` are pairs with names in lower case. The address is in its usual form, IPv4 inside
        IPv6 as IPv4. Of a chain of proxies it is the last address that no trusted one answers for.
        """
        address = _plain(peer) if peer else ""
        if not self._trusts_any or not address or not self._is_trusted(address):
            return address
        for hop in _hops_from_the_right(headers):
            told = _plain(hop)
            if not told:
                return address
            address = told
            if not self._is_trusted(address):
                return address
        return address

    def is_secure(self, peer: str | None, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a trusted proxy says that the client spoke TLS to it."""
        address = _plain(peer) if peer else ""
        if not self._trusts_any or not address or not self._is_trusted(address):
            return False
        sent = list(headers)
        schemes = _elements(sent, b"x-forwarded-proto")
        if schemes:
            return schemes[-1].lower() == b"https"
        forwarded = _elements(sent, b"forwarded")
        scheme = _FORWARDED_PROTO.search(forwarded[-1]) if forwarded else None
        return scheme is not None and scheme[1].lower() == b"https"


def _hops_from_the_right(headers: Iterable[tuple[bytes, bytes]]) -> list[str]:
    sent = list(headers)
    hops = _elements(sent, b"x-forwarded-for")
    if not hops:
        found = (_FORWARDED_FOR.search(element) for element in _elements(sent, b"forwarded"))
        hops = [match[1].strip(b'"') if match else b"" for match in found]
    return [_without_port(hop.decode("latin-1"))[:64] for hop in hops[: -_MOST_HOPS - 1 : -1]]


def _elements(headers: list[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    """Return the comma-separated elements of all lines of one header, as if it were one line."""
    joined = b",".join(value for sent, value in headers if sent == name)
    return [element.strip() for element in joined.split(b",")] if joined else []


def _without_port(hop: str) -> str:
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop


@lru_cache(maxsize=_MOST_KNOWN)
def _plain(address: str) -> str:
    """Return an address in its usual form, "" for what is none."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(parsed)

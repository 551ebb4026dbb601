"""Whose address a request counts for: only what trusted proxies say is believed."""

import pytest

from logging_service.client_address import ClientAddresses, read_networks

PROXIES = "10.0.0.0/8, 2001:db8:1::/48"
CLIENT, PROXY = "203.0.113.7", "10.0.0.1"


def sent(*lines: str) -> list[tuple[bytes, bytes]]:
    pairs = (line.split(": ", 1) for line in lines)
    return [(name.lower().encode(), value.encode()) for name, value in pairs]


@pytest.mark.parametrize(
    ("peer", "lines", "address"),
    [
        (CLIENT, [], CLIENT),
        (PROXY, [], PROXY),
        (None, ["X-Forwarded-For: 203.0.113.7"], ""),
        ("a-unix-socket", [], ""),
        # Who is no trusted proxy says nothing about itself.
        ("198.51.100.9", ["X-Forwarded-For: 203.0.113.7"], "198.51.100.9"),
        ("198.51.100.9", ["Forwarded: for=203.0.113.7"], "198.51.100.9"),
        (PROXY, ["X-Forwarded-For: 203.0.113.7"], CLIENT),
        # What the client itself wrote stands on the left.
        (PROXY, ["X-Forwarded-For: 127.0.0.1, 203.0.113.7"], CLIENT),
        (PROXY, ["X-Forwarded-For: 127.0.0.1", "X-Forwarded-For: 203.0.113.7, 10.9.9.9"], CLIENT),
        (PROXY, ["X-Forwarded-For: 203.0.113.7", "Forwarded: for=127.0.0.1"], CLIENT),
        (PROXY, ["X-Forwarded-For: 10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        (PROXY, ["X-Forwarded-For: 203.0.113.7:4711"], CLIENT),
        (PROXY, ["X-Forwarded-For: 203.0.113.7, unknown"], PROXY),
        (PROXY, ["X-Forwarded-For: ,"], PROXY),
        (PROXY, ["X-Forwarded-For: 203.0.113.7, nonsense, 10.0.0.2"], "10.0.0.2"),
        (PROXY, ["X-Real-IP: 203.0.113.7"], PROXY),
        (PROXY, ["Forwarded: proto=https;For=203.0.113.7;by=10.0.0.1"], CLIENT),
        (PROXY, ['Forwarded: for=127.0.0.1, for="[2001:DB8::7]:4711"'], "2001:db8::7"),
        (PROXY, ["Forwarded: for=_hidden"], PROXY),
        (PROXY, ["Forwarded: by=203.0.113.7"], PROXY),
        ("2001:db8:1::5", ["X-Forwarded-For: 2001:db8::7"], "2001:db8::7"),
        ("::ffff:10.0.0.1", ["X-Forwarded-For: ::ffff:203.0.113.7"], CLIENT),
        (PROXY, ["X-Forwarded-For: " + "203.0.113.7" + "7" * 5000], PROXY),
        (PROXY, ["X-Forwarded-For: 203.0.113.7" + ", 10.0.0.2" * 1000], "10.0.0.2"),
    ],
)
def test_the_last_address_that_no_trusted_proxy_answers_for_counts(
    peer: str | None, lines: list[str], address: str
) -> None:
    assert ClientAddresses(PROXIES).of(peer, sent(*lines)) == address


def test_without_trusted_proxies_nothing_is_believed() -> None:
    headers = sent("X-Forwarded-For: 203.0.113.7", "Forwarded: for=203.0.113.7;proto=https")
    addresses = ClientAddresses()
    assert addresses.of(PROXY, headers) == PROXY
    assert not addresses.is_secure(PROXY, headers)


@pytest.mark.parametrize(
    ("peer", "lines", "secure"),
    [
        (PROXY, ["X-Forwarded-Proto: https"], True),
        (PROXY, ["X-Forwarded-Proto: http"], False),
        (PROXY, ["X-Forwarded-Proto: https, http"], False),
        (PROXY, ["X-Forwarded-Proto: http", "Forwarded: proto=https"], False),
        (PROXY, ['Forwarded: for=203.0.113.7;proto="https"'], True),
        (PROXY, ["Forwarded: proto=https, proto=http"], False),
        (PROXY, ["Forwarded: for=203.0.113.7"], False),
        (PROXY, [], False),
        (CLIENT, ["X-Forwarded-Proto: https"], False),
        (None, ["X-Forwarded-Proto: https"], False),
    ],
)
def test_only_a_trusted_proxy_says_that_its_client_spoke_tls(
    peer: str | None, lines: list[str], *, secure: bool
) -> None:
    assert ClientAddresses(PROXIES).is_secure(peer, sent(*lines)) is secure


@pytest.mark.parametrize("text", ["proxy.example", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.1;::1"])
def test_what_is_no_network_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="is no address and no network"):
        read_networks(f"127.0.0.1, {text}")

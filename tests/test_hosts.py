"""For which Host headers a server answers."""

import pytest

from logging_service.hosts import AllowedHosts, read_host_names

OURS = ["localhost", "LOCALHOST:8001", "127.0.0.1:8001", "127.9.9.9", "[::1]:8001", "localhost."]
OTHERS = [
    "evil.example",
    "localhost.evil.example",
    "evil.example:8001",
    "127.0.0.1.evil.example",
    "localhost:8001:80",
    "localhost:port",
    "user@localhost",
    "localhost, localhost",
    "10.0.0.1",
    "",
    " ",
]


@pytest.mark.parametrize("bound_to", ["127.0.0.1", "::1", "localhost"])
def test_on_loopback_only_loopback_names_are_ours(bound_to: str) -> None:
    hosts = AllowedHosts(bound_to)
    assert all(hosts.admit(host.encode()) for host in OURS)
    assert not any(hosts.admit(host.encode()) for host in OTHERS)


def test_elsewhere_without_a_list_every_name_is_ours() -> None:
    hosts = AllowedHosts("0.0.0.0")
    assert all(hosts.admit(host.encode()) for host in (*OURS, *OTHERS))


@pytest.mark.parametrize("bound_to", ["127.0.0.1", "10.1.2.3"])
def test_a_list_adds_its_names_to_our_own(bound_to: str) -> None:
    names = read_host_names("Logs.example, *.wild.example, 192.0.2.1, [2001:db8::1]")
    hosts = AllowedHosts(bound_to, names)
    added = ["logs.example:8001", "LOGS.example", "a.b.wild.example", "192.0.2.1:80"]
    added += ["[2001:db8::1]:8001", bound_to]
    assert all(hosts.admit(host.encode()) for host in (*OURS, *added))
    refused = ["wild.example", "a.logs.example", "awild.example", "*.wild.example.evil"]
    assert not any(hosts.admit(host.encode()) for host in (*refused, "evil.example"))


def test_ports_without_number_cost_no_memory() -> None:
    hosts = AllowedHosts("127.0.0.1")
    assert all(hosts.admit(b"localhost:%d" % port) for port in range(2000))
    assert len(hosts._seen) < 300


@pytest.mark.parametrize("text", ["*", "http://a.example", "a.example:80", "*.*.example", "a b"])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no host name"):
        read_host_names(f"logs.example,{text}")

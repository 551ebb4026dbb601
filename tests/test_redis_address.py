"""REDIS_URL: what it says is understood, what it cannot mean is refused without its secrets."""

import re
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from logging_service.redis_address import Place, parse_redis_url


@pytest.mark.parametrize(
    ("url", "places", "database"),
    [
        ("redis://localhost", [("localhost", 6379)], 0),
        ("redis://localhost/", [("localhost", 6379)], 0),
        ("redis://10.0.0.7:7000/12", [("10.0.0.7", 7000)], 12),
        ("redis://[::1]:7000/3", [("::1", 7000)], 3),
        ("rediss://cache.example/1", [("cache.example", 6379)], 1),
        (
            "redis+sentinel://one,two:26380,[::1]/m",
            [("one", 26379), ("two", 26380), ("::1", 26379)],
            0,
        ),
        (
            "redis+sentinel://one,two,ONE:26379,one:26380/m",
            [("one", 26379), ("two", 26379), ("one", 26380)],
            0,
        ),
        ("redis+sentinel://one:5000/my%2Fmaster/7", [("one", 5000)], 7),
    ],
)
def test_a_url_names_places_and_a_database(
    url: str, places: list[tuple[str, int]], database: int
) -> None:
    address = parse_redis_url(url)
    assert list(address.places) == [Place(*place) for place in places]
    assert address.database == database
    assert (address.tls is not None) == url.startswith("rediss:")


def test_a_url_says_who_enters_and_by_which_password() -> None:
    nobody = parse_redis_url("redis://localhost/0")
    assert (nobody.username, nobody.password) == (None, None)
    default = parse_redis_url("redis://:a%2Fb%40c%3A@localhost/0")
    assert (default.username, default.password) == (None, "a/b@c:")
    tenant = parse_redis_url(
        "redis+sentinel://ten%40nt:p:w@one,two/my%20master?sentinel_password=s%23"
    )
    assert (tenant.username, tenant.password) == ("ten@nt", "p:w")
    assert (tenant.service, tenant.sentinel_password) == ("my master", "s#")
    assert "p:w" not in repr(tenant)
    assert "s#" not in repr(tenant)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://localhost", "redis://host:port"),
        ("redis://", "redis://host:port"),
        ("redis://:a-secret@/0", "redis://host:port"),
        ("redis://[::1/0", "redis://host:port"),
        ("redis://one two/0", "redis://host:port"),
        ("redis://localhost:0/0", "1 to 65535"),
        ("redis://localhost:99999/0", "1 to 65535"),
        ("redis://somebody:a-secret?@localhost/0", "knows none"),
        ("redis://somebody:a-secret/@localhost/0", "number of a database"),
        ("redis://one:6379,two:6379/0", "1 to 65535"),
        ("redis://:a-secret#@localhost/0", "%23"),
        ("redis://localhost/first", "number of a database"),
        ("redis://localhost/123456", "number of a database"),
        ("redis://localhost/0?ssl_cert_reqs=none", "knows none"),
        ("rediss://localhost/0?ssl_ca_cert=/ca.pem", "ssl_ca_certs"),
        ("rediss://localhost/0?ssl_ca_certs=ca.pem", "absolute"),
        ("rediss://localhost/0?ssl_ca_certs=/no/such/file", "ssl_ca_certs: No such file"),
        ("rediss://localhost/0?ssl_ca_certs={nonsense}", "ssl_ca_certs: "),
        ("rediss://localhost/0?ssl_certfile={nonsense}", "ssl_certfile: "),
        ("rediss://localhost/0?ssl_cert_reqs=optional", "required or none"),
        ("rediss://localhost/0?ssl_check_hostname=0", "true or false"),
        ("redis+sentinel://localhost:26379", "/mymaster/0"),
        ("redis+sentinel://localhost:26379/", "/mymaster/0"),
        ("redis+sentinel://localhost:26379/mymaster/first", "/mymaster/0"),
        ("redis+sentinel:///mymaster/0", "redis+sentinel://host:port"),
        ("redis+sentinel://one:26379,,two:26379/mymaster", "redis+sentinel://host:port"),
        ("redis+sentinel://one:26379,two:port/mymaster", "1 to 65535"),
        ("redis+sentinel://one/mymaster?password=a-secret", "sentinel_password"),
        ("redis+sentinel://1,2,3,4,5,6,7,8,9,10/mymaster", "at most 9"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_no_secret_repeated(
    tmp_path: Path, url: str, said: str
) -> None:
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("no certificate")
    with pytest.raises(ValueError, match=re.escape(said)) as refused:
        parse_redis_url(url.replace("{nonsense}", str(nonsense)))
    assert "secret" not in str(refused.value)


def test_a_key_that_needs_a_password_is_refused_and_not_asked_for(tmp_path: Path) -> None:
    made = trustme.CA().issue_cert("client@example.test")
    certificate, key = tmp_path / "client.pem", tmp_path / "client.key"
    made.cert_chain_pems[0].write_to_path(str(certificate))
    plain = serialization.load_pem_private_key(made.private_key_pem.bytes(), None)
    key.write_bytes(
        plain.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"its password"),
        )
    )
    options = f"ssl_certfile={certificate}&ssl_keyfile={key}"
    with pytest.raises(ValueError, match="ssl_certfile, ssl_keyfile: "):
        parse_redis_url(f"rediss://localhost/0?{options}")

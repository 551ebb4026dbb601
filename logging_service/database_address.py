"""Where PostgreSQL is: its URL, checked as it was given, or made of its parts."""

from pathlib import Path
from urllib.parse import parse_qsl, quote, urlsplit

_SCHEMES = ("postgresql", "postgres")
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


def check_database_url(url: str) -> str:
    """Return `url`; raises ValueError, which repeats nothing of it, for one that cannot be used."""
    parts = urlsplit(url)
    _check_certificates(parts.query)
    try:
        if parts.scheme in _SCHEMES and parts.hostname and parts.port != 0:
            return url
    except ValueError:
        # What looks like a port may be the half of a password: it is not repeated.
        raise ValueError("a port has to be a number from 1 to 65535") from None
    raise ValueError("allowed is " + " or ".join(f"{scheme}://host…" for scheme in _SCHEMES))


def _check_certificates(query: str) -> None:
    options = dict(parse_qsl(query))
    if options.get("sslmode", "prefer") not in _SSL_MODES:
        raise ValueError(f"sslmode has to be one of {', '.join(_SSL_MODES)}")
    for name in ("sslrootcert", "sslcert", "sslkey"):
        if name in options and not Path(options[name]).is_file():
            raise ValueError(f"{name}: there is no such file")


def database_url(user: str, password: str, host: str, port: int, name: str) -> str:
    """Return the URL of a database; without a `password` it names none."""
    login = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
    return f"postgresql://{login}@{bracketed(host)}:{port}/{quote(name, safe='')}"


def bracketed(host: str) -> str:
    """Return `host` as it stands in a URL."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host

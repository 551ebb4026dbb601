"""`logging-service keys`: what it prints, and what it does to the keys."""

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from commanded import Command, CommandHere

from logging_service.auth import Keyring
from logging_service.backends import open_keys
from logging_service.pepper import pepper_of
from logging_service.settings import Settings

KEY = re.compile(r"lsk_([a-z0-9]{12})_[A-Za-z0-9]{46}")


@pytest.fixture
def command(environment: dict[str, str]) -> CommandHere:
    return CommandHere("keys", environment)


async def made(command: CommandHere, *arguments: str) -> tuple[str, str]:
    """Make a key and return its id and its text."""
    text = (await command.run("create", *arguments)).stdout
    match = KEY.fullmatch(text.removesuffix("\n"))
    assert match, text
    return match[1], match[0]


async def listed(command: CommandHere, *arguments: str) -> list[dict[str, Any]]:
    answer = json.loads((await command.run("list", "--json", *arguments)).stdout)
    keys: list[dict[str, Any]] = answer["keys"]
    return keys


async def test_create_prints_the_key_alone_where_a_script_reads(
    environment: dict[str, str],
) -> None:
    done = await Command("keys", environment).run("create", "ci")
    match = KEY.fullmatch(done.stdout.removesuffix("\n"))
    assert match
    assert done.stderr.startswith(f"key {match[1]}, ci of the project ci, read and write: ")
    assert len(done.stderr.splitlines()) == 1


async def test_a_created_key_is_one_that_the_services_take(
    command: CommandHere, settings: Settings
) -> None:
    _, text = await made(command, "ci", "--scope", "read")
    keyring = Keyring(settings)
    async with open_keys(settings) as keys:
        changes = await keys.changes(-1)
    assert changes is not None
    keyring.hold(changes, pepper_of(settings))
    principal = keyring.principal_from_headers({b"x-api-key": text.encode()}, "")
    assert principal is not None
    assert (principal.name, principal.scopes) == ("ci", frozenset({"read"}))


async def test_every_option_ends_up_in_the_key(command: CommandHere) -> None:
    done = await command.run(
        "create", "ci runner", "--project", "reviewer", "--scope", "write", "--scope", "erase",
        "--expires", "90d", "--rate-limit", "500/minute", "--rate-limit", "/logs=100/minute",
        "--network", "10.0.0.0/8", "--network", "::1", "--json",
    )  # fmt: skip
    told = json.loads(done.stdout)
    assert KEY.fullmatch(told["key"])
    ends = datetime.fromisoformat(told["expires_at"])
    assert timedelta(days=89) < ends - datetime.now(UTC) <= timedelta(days=90)
    expected = {
        "name": "ci runner",
        "project": "reviewer",
        "scopes": ["erase", "write"],
        "rates": {"": "500/minute", "/logs": "100/minute"},
        "networks": ["10.0.0.0/8", "::1/128"],
        "created_by": "command line",
    }
    assert expected.items() <= told.items()


async def test_a_day_ends_a_key_at_its_first_moment_in_utc(command: CommandHere) -> None:
    key_id, _ = await made(command, "ci", "--expires", "2126-01-01")
    (key,) = await listed(command)
    assert (key["id"], key["expires_at"]) == (key_id, "2126-01-01T00:00:00Z")


async def test_list_shows_keys_and_what_to_look_at(
    command: CommandHere, database: asyncpg.Connection
) -> None:
    table = (await command.run("list")).stdout.splitlines()
    assert [line.split()[0] for line in table] == ["id", "default", "admin"]
    assert ["set by API_KEY" in table[1], "set by ADMIN_API_KEY" in table[2]] == [True, True]
    old, _ = await made(command, "old one", "--project", "p")
    await database.execute(
        "UPDATE api_keys SET created_at = now() - interval '100 days', pepper = 'another',"
        " expires_at = now() + interval '47 hours'"
    )
    await database.execute(
        "INSERT INTO api_key_uses VALUES ($1, now() - interval '2 hours', 1234)", old
    )
    new, _ = await made(command, "new one", "--project", "p")
    table = (await command.run("list")).stdout.splitlines()
    assert [line.split()[0] for line in table] == ["id", new, old, "default", "admin"]
    remarks = "1234  older than 90 days, expires in 2 days, made with another pepper"
    assert table[2].endswith(remarks)
    assert table[1].split()[-3:] == ["never", "never", "0"]


async def test_list_shows_ended_keys_with_all_and_as_many_as_asked(command: CommandHere) -> None:
    first, _ = await made(command, "first")
    second, _ = await made(command, "second")
    await command.run("revoke", "first", "--yes")
    assert [key["id"] for key in await listed(command)] == [second]
    assert [key["status"] for key in await listed(command, "--all")] == ["active", "revoked"]
    shortened = await command.run("list", "--all", "--limit", "1")
    assert shortened.stdout.splitlines()[-1].startswith("there are more: --limit")
    assert first not in shortened.stdout


async def test_show_tells_all_of_one_key_by_name_or_id(command: CommandHere) -> None:
    key_id, text = await made(command, "ci", "--rate-limit", "5/minute")
    by_name = (await command.run("show", "ci")).stdout
    assert (await command.run("show", key_id)).stdout == by_name
    assert (await command.run("show", text)).stdout == by_name
    lines = dict(line.split(None, 1) for line in by_name.splitlines() if " " in line)
    assert (lines["id"], lines["scopes"]) == (key_id, "read, write")
    assert lines["rates"] == "any other: 5/minute"
    assert json.loads((await command.run("show", "ci", "--json")).stdout)["id"] == key_id


async def test_rotate_prints_the_new_key_and_says_how_long_the_old_one_is_good(
    command: CommandHere,
) -> None:
    old, _ = await made(command, "ci", "--project", "p", "--scope", "write")
    done = await command.run("rotate", "ci", "--overlap", "7d")
    match = KEY.fullmatch(done.stdout.removesuffix("\n"))
    assert match
    new, replaced = await listed(command)
    assert (new["id"], new["project"], new["scopes"]) == (match[1], "p", ["write"])
    assert (replaced["id"], replaced["rotated_to"]) == (old, match[1])
    ends = datetime.fromisoformat(replaced["expires_at"])
    assert timedelta(days=6) < ends - datetime.now(UTC) <= timedelta(days=7)
    assert f"the old one, {old}, is good until {ends:%Y-%m-%d %H:%M} UTC\n" in done.stderr
    last = await command.run("rotate", match[1], "--overlap", "0s")
    assert f"the old one, {match[1]}, is good no more\n" in last.stderr


async def test_a_name_that_two_keys_share_since_a_rotation_rotates_the_last(
    command: CommandHere,
) -> None:
    await made(command, "ci")
    second = KEY.fullmatch((await command.run("rotate", "ci")).stdout.strip())
    await command.run("rotate", "ci")
    assert second
    rotated = {key["id"]: key["rotated_to"] for key in await listed(command)}
    assert len(rotated) == 3
    assert rotated[second[1]] is not None


async def test_a_name_of_several_keys_is_refused_with_their_ids(command: CommandHere) -> None:
    first, _ = await made(command, "ci")
    second, _ = await made(command, "ci")
    done = await command.run("revoke", "ci", "--yes", code=2)
    assert len(done.stderr.splitlines()) == 1
    assert first in done.stderr
    assert second in done.stderr
    assert [key["status"] for key in await listed(command)] == ["active", "active"]


async def test_revoke_asks_first_and_may_be_repeated(command: CommandHere) -> None:
    key_id, text = await made(command, "ci")
    asked = await command.run("revoke", "ci", answer="n\n", code=1)
    assert f"Revoke {key_id}, ci of the project ci?" in asked.stdout + asked.stderr
    assert len(await listed(command)) == 1
    await command.run("revoke", text, answer="y\n")
    assert await listed(command) == []
    again = await command.run("revoke", "ci")
    assert again.stdout.startswith(f"{key_id}, ci of the project ci: is revoked since ")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("create", "a b"), "--project"),
        (("create", "a\x1bb"), "NAME"),
        (("create", "ci", "--scope", "root"), "--scope"),
        (("create", "ci", "--expires", "soon"), "--expires"),
        (("create", "ci", "--expires", "0d"), "--expires"),
        (("create", "ci", "--rate-limit", "many"), "--rate-limit"),
        (("create", "ci", "--rate-limit", "/log=many"), "--rate-limit /log"),
        (("create", "ci", "--rate-limit", "1/day", "--rate-limit", "2/day"), "--rate-limit"),
        (("create", "ci", "--network", "home"), "--network 0"),
        (("rotate", "kept", "--overlap", "long"), "--overlap"),
        (("rotate", "kept", "--overlap", "31d"), "--overlap"),
        (("rotate", "nobody"), "KEY"),
        (("rotate", "API_KEY"), "KEY"),
        (("revoke", "nobody", "--yes"), "KEY"),
        (("revoke", "ADMIN_API_KEY", "--yes"), "KEY"),
        (("show", "\x1b[2J\udcff"), "KEY"),
    ],
    ids=repr,
)
async def test_what_cannot_be_used_is_one_line_and_changes_nothing(
    command: CommandHere, arguments: tuple[str, ...], named: str
) -> None:
    await made(command, "kept")
    done = await command.run(*arguments, code=2)
    assert done.stderr.startswith(f"{named}: ")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr[:-1].isprintable()
    (kept,) = await listed(command, "--all")
    assert (kept["status"], kept["rotated_to"]) == ("active", None)


async def test_a_key_that_the_services_will_refuse_comes_with_a_warning(
    command: CommandHere, environment: dict[str, str]
) -> None:
    assert "warning" not in (await command.run("create", "first")).stderr
    assert "warning" not in (await command.run("create", "second")).stderr
    elsewhere = CommandHere("keys", {**environment, "API_KEY_PEPPER": "another pepper, of 16"})
    assert (
        "warning: every other key was made with another"
        in (await elsewhere.run("create", "third")).stderr
    )


async def test_without_the_database_it_is_one_line(
    environment: dict[str, str], free_port: int
) -> None:
    away = {**environment, "DATABASE_URL": f"postgresql://nobody@127.0.0.1:{free_port}/0"}
    done = await CommandHere("keys", away).run("list", code=1)
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["create", "list", "show", "rotate", "revoke"])
async def test_each_explains_itself_with_an_example(command: CommandHere, name: str) -> None:
    assert f"keys {name}" in (await command.run(name, "--help")).stdout

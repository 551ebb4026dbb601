"""Which lines a diff changes: as git writes it, as anybody could, and when it is none."""

import difflib
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logging_service.unified_diff import Changed, DiffRejected, changed_files


def lines_in(diff: str) -> dict[str, dict[int, bytes]]:
    return {change.path: change.lines for change in changed_files(diff.encode())}


HEAD = "diff --git a/{0} b/{0}\nindex 1..2 100644\n--- a/{0}\n+++ b/{0}\n"


def test_added_and_replaced_lines_have_the_numbers_of_the_new_version() -> None:
    diff = HEAD.format("app.py") + (
        "@@ -1,4 +1,5 @@ def f():\n import os\n-x = 1\n+x = 2\n+y = 3\n \n z = 4\n"
        "@@ -20 +21 @@\n-old\n+new\n"
    )
    assert lines_in(diff) == {"app.py": {2: b"x = 2", 3: b"y = 3", 21: b"new"}}


def test_lines_that_look_like_headers_are_lines() -> None:
    diff = HEAD.format("a.py") + "@@ -1,2 +1,3 @@\n--- a/gone.py\n+++ b/new.py\n+@@ -1 +1 @@\n x\n"
    assert lines_in(diff) == {"a.py": {1: b"++ b/new.py", 2: b"@@ -1 +1 @@"}}


def test_a_file_that_only_lost_lines_is_changed_but_has_no_new_line() -> None:
    assert lines_in(HEAD.format("a.py") + "@@ -3 +2,0 @@\n-x\n") == {"a.py": {}}


def test_removed_renamed_and_binary_files_are_left_out() -> None:
    diff = (
        "diff --git a/gone.py b/gone.py\ndeleted file mode 100644\n--- a/gone.py\n+++ /dev/null\n"
        "@@ -1 +0,0 @@\n-x\n"
        "diff --git a/old.py b/new.py\nsimilarity index 100%\nrename from old.py\n"
        "rename to new.py\n"
        "diff --git a/x.py b/x.py\nBinary files a/x.py and b/x.py differ\n"
        "diff --git a/y.py b/y.py\nGIT binary patch\nliteral 3\nKcmZ\n\nliteral 0\nHcmV?d00001\n\n"
        "diff --git a/run.py b/run.py\nold mode 100644\nnew mode 100755\n"
    )
    assert lines_in(diff) == {}


def test_a_missing_newline_at_the_end_is_no_line() -> None:
    end = "\\ No newline at end of file\n"
    diff = HEAD.format("a.py") + f"@@ -1 +1,2 @@\n-x\n{end}+x\n+y\n{end}"
    assert lines_in(diff) == {"a.py": {1: b"x", 2: b"y"}}


def test_ends_of_lines_of_windows_are_no_part_of_lines_and_names() -> None:
    diff = (HEAD.format("a.py") + "@@ -1,3 +1,3 @@\n x\n\n-y\n+z\n").replace("\n", "\r\n")
    assert lines_in(diff) == {"a.py": {3: b"z"}}


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("a/src/my app.py\t", "b/src/my app.py\t", "src/my app.py"),
        ('"a/gr\\303\\266\\303\\237e.py"', '"b/gr\\303\\266\\303\\237e.py"', "größe.py"),
        ('"a/a\\"b\\\\c\\n.py"', '"b/a\\"b\\\\c\\n.py"', 'a"b\\c\n.py'),
        ("a.py\t2026-11-23 10:00", "a.py\t2026-11-23 10:01", "a.py"),
        ("b/a.py", "b/a.py", "b/a.py"),
        ("i/a.py", "w/a.py", "a.py"),
        ("/dev/null", "b/a.py", "a.py"),
        ("a/old.py", "b/new.py", "new.py"),
    ],
)
def test_names_are_read_as_git_writes_them(old: str, new: str, path: str) -> None:
    assert lines_in(f"--- {old}\n+++ {new}\n@@ -0,0 +1 @@\n+x\n") == {path: {1: b"x"}}


def test_a_name_that_is_no_utf8_is_kept() -> None:
    (change,) = changed_files(b"--- a/\xff.py\n+++ b/\xff.py\n@@ -0,0 +1 @@\n+x\n")
    assert change == Changed("\udcff.py", {1: b"x"})


@pytest.mark.parametrize(
    "diff",
    [
        "diff --cc a.py\nindex 1,2..3\n--- a/a.py\n+++ b/a.py\n@@@ -1,2 -1,2 +1,3 @@@\n  x\n",
        "diff --combined a.py\n",
    ],
)
def test_a_combined_diff_is_refused_with_what_to_do(diff: str) -> None:
    with pytest.raises(DiffRejected, match="git diff HEAD"):
        lines_in(diff)


@pytest.mark.parametrize(
    "diff",
    [
        "hello\n",
        "\x1b[1mdiff --git a/a.py b/a.py\x1b[m\n",
        HEAD.format("a.py") + "@@ -1,2 +1,2 @@\n x\n",
        HEAD.format("a.py") + "@@ -1 +1 @@\n-x\ny\n",
        HEAD.format("a.py") + "@@ -1 +1 @@\n+x\n+y\n-z\n",
    ],
)
def test_what_is_no_diff_is_refused(diff: str) -> None:
    with pytest.raises(DiffRejected):
        lines_in(diff)


def test_nothing_changes_nothing() -> None:
    assert lines_in("") == {}


LINES = st.lists(st.sampled_from(["", "x = 1", "-- a/b", "++ b/c", "@@ -1 +1 @@", "\\ no"]))


@given(LINES, LINES, st.integers(0, 3))
def test_new_lines_are_those_of_the_new_version_and_the_rest_is_old(
    old: list[str], new: list[str], context: int
) -> None:
    diff = "\n".join(difflib.unified_diff(old, new, "a/a.py", "b/a.py", n=context, lineterm=""))
    found = lines_in(diff).get("a.py", {})
    assert all(new[number - 1].encode() == text for number, text in found.items())
    rest = iter(old)
    kept = (line for number, line in enumerate(new, 1) if number not in found)
    assert all(line in rest for line in kept)


@given(st.binary(max_size=200))
def test_whatever_comes_is_read_or_refused(diff: bytes) -> None:
    with suppress(DiffRejected):
        for change in changed_files(b"--- a/a.py\n+++ b/a.py\n@@ -1,3 +1,3 @@\n" + diff):
            assert change.path


def test_it_reads_what_git_writes(tmp_path: Path) -> None:
    def git(*arguments: str) -> bytes:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True).stdout

    git("init", "-q")
    (tmp_path / "a b.py").write_text("one\ntwo\n")
    (tmp_path / "ö.py").write_bytes(b"one\r\ntwo")
    (tmp_path / "gone.py").write_text("x\n")
    git("add", ".")
    git("commit", "-qm", "first")
    (tmp_path / "a b.py").write_text("zero\none\n2\n")
    (tmp_path / "ö.py").write_bytes(b"one\r\ntwo\r\nthree")
    (tmp_path / "gone.py").rename(tmp_path / "moved.py")
    git("add", "-A")
    found = {change.path: change.lines for change in changed_files(git("diff", "-M", "HEAD"))}
    assert found == {
        "a b.py": {1: b"zero", 3: b"2"},
        "ö.py": {2: b"two", 3: b"three"},
    }

"""What import-linter cannot see: the single files at the root, and the checks themselves."""

import ast
import sys
from pathlib import Path

import check_tree
import pytest
from servers import ROOT

OURS = {"main", "storage", "logging_helper"}


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def test_the_client_needs_the_standard_library_and_urllib3_only() -> None:
    assert imported(ROOT / "logging_helper.py") - set(sys.stdlib_module_names) <= {"urllib3"}


@pytest.mark.parametrize("file", sorted((ROOT / "logging_service").rglob("*.py")), ids=str)
def test_the_service_does_not_know_its_users(file: Path) -> None:
    assert not imported(file) & (OURS | {"code_reviewer"})


def test_no_module_is_named_like_one_of_the_standard_library() -> None:
    modules = {file.stem for file in (ROOT / "logging_service").glob("*.py")}
    assert not modules & set(sys.stdlib_module_names)


def test_the_tree_is_as_it_should_be() -> None:
    assert [*check_tree.long_modules(), *check_tree.unlocked()] == []


def test_a_requirement_that_is_not_locked_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_tree, "LOCKS", {"logging_service/requirements.txt": ("dev",)})
    assert any("pytest" in fault for fault in check_tree.unlocked())


def test_a_module_that_is_too_long_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_tree, "MAX_LINES", 10)
    assert any("producer.py" in fault for fault in check_tree.long_modules())

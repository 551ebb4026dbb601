"""`logging-service clean-data`: asks once, stops what runs, removes DATA_DIR and nothing else."""

import signal
from pathlib import Path

from projects import Project, line_of


def test_clean_data_stops_what_runs_and_removes_the_folder(project: Project) -> None:
    up = project.start().ready()
    ended = project.run("clean-data --yes")
    assert ended.returncode == 0, ended
    assert up.ends() == 0
    assert not project.data_dir.exists()
    assert project.left() == []


def test_clean_data_ends_what_a_killed_up_left(project: Project) -> None:
    project.start().ready().ends(signal.SIGKILL)
    assert project.run("clean-data --yes").returncode == 0
    assert project.left() == []
    assert not project.data_dir.exists()


def test_clean_data_asks_first(project: Project) -> None:
    assert project.start().ready().ends(signal.SIGTERM) == 0
    for answer in ("n\n", ""):
        assert project.run("clean-data", answer).returncode == 1
        assert (project.data_dir / "postgres").exists()
    assert project.run("clean-data", "y\n").returncode == 0
    assert not project.data_dir.exists()
    assert project.run("clean-data").returncode == 0


def test_clean_data_leaves_folders_that_are_not_ours(project: Project) -> None:
    theirs = project.folder / "theirs"
    theirs.mkdir()
    (theirs / "letter.txt").touch()
    for folder in (theirs, Path.home(), Path("/")):
        line = line_of(project.run("clean-data --yes", DATA_DIR=str(folder)))
        assert line.startswith(f"DATA_DIR={folder.resolve()} was not made by logging-service")
    assert (theirs / "letter.txt").exists()

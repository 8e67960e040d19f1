"""What is made once is made once, whole, and never trusted when it is not what it was."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from search.artifacts import MANIFEST, Artifacts, digest, digest_of_files
from search.errors import UserError

KEY = {"steps": 3, "model": "x"}


def maker(calls: list[Path], text: str = "content"):
    def make(folder: Path) -> None:
        calls.append(folder)
        (folder / "file.txt").write_text(text)

    return make


def test_a_thing_is_made_once_and_found_by_its_key(tmp_path: Path) -> None:
    artifacts, calls = Artifacts(tmp_path / "a"), []
    first = artifacts.made("thing", KEY, maker(calls))
    again = Artifacts(tmp_path / "a").made("thing", {"model": "x", "steps": 3}, maker(calls))
    other = artifacts.made("thing", {**KEY, "steps": 4}, maker(calls))
    assert first == again != other
    assert len(calls) == 2
    assert (first / "file.txt").read_text() == "content"


@pytest.mark.parametrize("damage", ["changed", "deleted", "no manifest", "manifest torn"])
def test_what_does_not_match_its_manifest_is_made_again(damage: str, tmp_path: Path) -> None:
    artifacts, calls = Artifacts(tmp_path), []
    made = artifacts.made("thing", KEY, maker(calls))
    if damage == "changed":
        (made / "file.txt").write_text("contend")
    elif damage == "deleted":
        (made / "file.txt").unlink()
    elif damage == "no manifest":
        (made / MANIFEST).unlink()
    else:
        (made / MANIFEST).write_text('{"file.txt": "12')
    assert artifacts.made("thing", KEY, maker(calls)) == made
    assert len(calls) == 2
    assert (made / "file.txt").read_text() == "content"


def test_an_interrupted_making_leaves_nothing_that_is_trusted(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path)

    def torn(folder: Path) -> None:
        (folder / "file.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        artifacts.made("thing", KEY, torn)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    assert (artifacts.made("thing", KEY, maker([])) / "file.txt").read_text() == "content"


KILLED = """
import sys, time
from pathlib import Path
from search.artifacts import Artifacts
def hang(folder):
    (folder / "file.txt").write_text("half")
    print("making", flush=True)
    time.sleep(60)
Artifacts(Path(sys.argv[1])).made("thing", {"steps": 3, "model": "x"}, hang)
"""


def test_a_killed_maker_holds_nobody_up(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"making\n"
        victim.kill()
    made = Artifacts(tmp_path).made("thing", KEY, maker([]))
    assert (made / "file.txt").read_text() == "content"


def test_others_wait_while_one_makes(tmp_path: Path) -> None:
    calls: list[Path] = []

    def slow(folder: Path) -> None:
        calls.append(folder)
        time.sleep(0.3)

    threads = [threading.Thread(target=lambda: Artifacts(tmp_path).made("thing", KEY, slow)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def test_wrong_input_leaves_no_trace(tmp_path: Path) -> None:
    def refuse(folder: Path) -> None:
        (folder / "file.txt").write_text("half")
        raise UserError("the data are wrong")

    with pytest.raises(UserError):
        Artifacts(tmp_path / "runs" / "x").made("thing", KEY, refuse)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written \(Not a directory\); name another"):
        Artifacts(tmp_path / "file" / "artifacts")


def test_digests_do_not_depend_on_order_and_see_every_byte(tmp_path: Path) -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
    (tmp_path / "a.tsv").write_text("1")
    before = digest_of_files(tmp_path)
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "b.tsv").write_text("1")
    assert digest_of_files(tmp_path / "a.tsv") == digest_of_files(tmp_path / "moved" / "b.tsv")
    assert digest_of_files(tmp_path) == before
    (tmp_path / "a.tsv").write_text("2")
    assert digest_of_files(tmp_path) != before

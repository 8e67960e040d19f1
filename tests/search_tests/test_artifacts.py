"""What is made once is made once, whole, and never trusted when it is not what it was."""

import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from search.artifacts import Artifacts, digest, digest_of_files
from search.errors import UserError
from search.manifests import MANIFEST

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


@pytest.mark.parametrize("damage", ["changed", "deleted", "no manifest", "manifest torn", "manifest empty", "way out"])
def test_what_does_not_match_its_manifest_is_made_again(damage: str, tmp_path: Path) -> None:
    artifacts, calls = Artifacts(tmp_path), []
    made = artifacts.made("thing", KEY, maker(calls))
    if damage == "changed":
        (made / "file.txt").write_text("contend")
    elif damage == "deleted":
        (made / "file.txt").unlink()
    elif damage == "no manifest":
        (made / MANIFEST).unlink()
    elif damage == "manifest torn":
        (made / MANIFEST).write_text('{"file.txt": "12')
    elif damage == "manifest empty":
        (made / MANIFEST).write_text("{}")
    else:
        (tmp_path / "x").write_text("content")
        files = json.loads((made / MANIFEST).read_text())
        (made / MANIFEST).write_text(json.dumps({**files, "../x": files["file.txt"]}))
    assert artifacts.found("thing", digest(KEY)) is None
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
    artifacts.say("teacher", 37, 120)
    print("making", flush=True)
    time.sleep(60)
artifacts = Artifacts(Path(sys.argv[1]))
artifacts.made("thing", {"steps": 3, "model": "x"}, hang)
"""


def test_a_killed_maker_holds_nobody_up(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"making\n"
        victim.kill()
    made = Artifacts(tmp_path).made("thing", KEY, maker([]))
    assert (made / "file.txt").read_text() == "content"


def test_who_waits_hears_of_it_and_takes_over_from_a_maker_that_is_killed(tmp_path: Path) -> None:
    heard: list[str] = []
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"making\n"

        def on_wait(text: str) -> None:
            heard.append(text)
            if len(heard) == 2:
                victim.kill()

        made = Artifacts(tmp_path).made("thing", KEY, maker([]), on_wait=on_wait)
    assert set(heard) == {"thing (teacher 37/120)"}
    assert len(heard) in (2, 3)
    assert sorted(file.name for file in made.iterdir()) == ["file.txt", "key.json", MANIFEST]
    assert (made / "file.txt").read_text() == "content"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [made.name]


def test_who_waits_may_give_up(tmp_path: Path) -> None:
    def stop(_: str) -> None:
        raise KeyboardInterrupt

    def make(folder: Path) -> None:
        with pytest.raises(KeyboardInterrupt):
            in_thread(lambda: Artifacts(tmp_path).made("thing", KEY, maker([]), on_wait=stop))
        maker([])(folder)

    assert Artifacts(tmp_path).made("thing", KEY, make)


def in_thread(work) -> None:
    """Do it in another thread, and raise here what it raises."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()


def test_what_the_maker_says_is_not_part_of_the_thing(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path)

    def make(folder: Path) -> None:
        artifacts.say("stage", 1, 2)
        assert len(list(folder.iterdir())) == 1
        (folder / "file.txt").touch()

    artifacts.say("nothing is made", 0, 1)
    made = artifacts.made("thing", KEY, make)
    artifacts.say("nothing is made", 0, 1)
    assert sorted(file.name for file in made.iterdir()) == ["file.txt", "key.json", MANIFEST]
    assert sorted(path.name for path in tmp_path.iterdir()) == [made.name, made.name + ".lock"]


def test_a_maker_with_wrong_input_leaves_its_lock_to_nobody(tmp_path: Path) -> None:
    """It removes the lock file that others wait at; they must not make the same thing at the same time."""
    making, most = [0], [0]

    def refuse(_: Path) -> None:
        making[0] += 1
        most[0] = max(most[0], making[0])
        time.sleep(0.1)
        making[0] -= 1
        raise UserError("the data are wrong")

    def ask() -> None:
        for _ in range(2):
            with pytest.raises(UserError, match="the data are wrong"):
                Artifacts(tmp_path).made("thing", KEY, refuse)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert list(tmp_path.iterdir()) == []


def test_found_only_reads(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path / "a")
    assert artifacts.found("thing", digest(KEY)) is None
    assert not (tmp_path / "a").exists()
    made = artifacts.made("thing", KEY, maker([]))
    (tmp_path / "a" / f"{made.name}.lock").unlink()
    before = sorted(tmp_path.rglob("*"))
    assert Artifacts(tmp_path / "a").found("thing", digest(KEY)) == made
    assert artifacts.found("other", digest(KEY)) is None
    assert sorted(tmp_path.rglob("*")) == before
    for wrong in ("", digest(KEY)[:20], "../" + digest(KEY)[3:]):
        with pytest.raises(ValueError, match="64 hexadecimal digits"):
            artifacts.found("thing", wrong)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one mebibyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"needs a small disk, and there is no mount here ({error})")
    if mounted.returncode:
        pytest.skip(f"needs a small disk, and mount is not permitted here ({mounted.stderr.strip()})")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("how", ["file", "safetensors"])
def test_a_full_disk_is_said_and_nothing_half_is_left(how: str, small_disk: Path) -> None:
    (small_disk / "filling").write_bytes(bytes(500_000))
    artifacts, size = Artifacts(small_disk / "runs" / "artifacts"), 800_000

    def make(folder: Path) -> None:
        if how == "file":
            (folder / "file.bin").write_bytes(bytes(size))
        else:
            save_file({"a": np.zeros(size, np.uint8)}, folder / "file.safetensors")

    with pytest.raises(UserError, match=r"disk/runs/artifacts' is full: .* the teacher, .* the same command goes on"):
        artifacts.made("teacher", KEY, make)
    assert [path.name for path in small_disk.rglob("*")] == ["filling"]
    (small_disk / "filling").unlink()
    assert artifacts.made("teacher", KEY, make)


def test_on_a_disk_that_is_full_or_read_only_things_are_still_found(small_disk: Path) -> None:
    made = Artifacts(small_disk).made("thing", KEY, maker([]))
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "filling").write_bytes(bytes(2_000_000))
    assert Artifacts(small_disk).found("thing", digest(KEY)) == made
    with pytest.raises(UserError, match=r"is full: .* the other"):
        Artifacts(small_disk).made("other", KEY, maker([]))
    assert sorted(path.name for path in small_disk.iterdir()) == ["filling", made.name, made.name + ".lock"]
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    artifacts = Artifacts(small_disk)
    assert artifacts.found("thing", digest(KEY)) == artifacts.made("thing", KEY, maker([])) == made
    assert artifacts.found("other", digest(KEY)) is None
    with pytest.raises(UserError, match=r"cannot be written \(Read-only file system\); name another with --artifacts"):
        artifacts.made("other", KEY, maker([]))


def test_only_the_artifact_folders_disk_is_called_full(tmp_path: Path) -> None:
    def elsewhere(_: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/somewhere/else")

    with pytest.raises(OSError, match="/somewhere/else"):
        Artifacts(tmp_path).made("thing", KEY, elsewhere)


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


def test_a_folder_that_is_a_file_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    artifacts, calls = Artifacts(tmp_path / "file" / "artifacts"), []
    for use in (artifacts.check_writable, lambda: artifacts.made("thing", KEY, maker(calls))):
        with pytest.raises(UserError, match=r"cannot be written \(Not a directory\); name another with --artifacts"):
            use()
    assert calls == []


def test_digests_do_not_depend_on_order_and_see_every_byte(tmp_path: Path) -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
    (tmp_path / "a.tsv").write_text("1")
    before = digest_of_files(tmp_path)
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "b.tsv").write_text("1")
    assert digest_of_files(tmp_path / "a.tsv") == digest_of_files(tmp_path / "moved" / "b.tsv")
    assert digest_of_files(tmp_path) == before
    (tmp_path / ".DS_Store").write_text("where a window was")
    assert digest_of_files(tmp_path) == before
    (tmp_path / "a.tsv").write_text("2")
    assert digest_of_files(tmp_path) != before

"""An environment for each peer, and a process in it that answers.

    NAME.txt, NAME.no-deps.txt ──venv, pip──► ENVIRONMENTS/NAME ──► with_NAME.py, asked line by line (`exchange`)

The pins of the tools exclude each other, and ours. An environment is made once, and again when its files change.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class UnavailableError(Exception):
    """A peer cannot be run; the text says why."""


class RefusedError(UnavailableError):
    """A peer makes no such model, however often it is asked; the text says why."""


def requirements(name: str) -> list[Path]:
    """The files that say what an environment holds; what the second names is installed without what it asks for."""
    return [file for file in (HERE / f"{name}.txt", HERE / f"{name}.no-deps.txt") if file.exists()]


def version(name: str, package: str) -> str:
    """The version of a package that a peer's files pin.

    Raises:
        ValueError: If they pin none.
    """
    for file in requirements(name):
        for line in file.read_text(encoding="utf-8").splitlines():
            found, _, pinned = line.partition("==")
            if found.strip() == package:
                return pinned.strip()
    raise ValueError(f"{package} is not pinned in the files of {name}: {[file.name for file in requirements(name)]}")


def made(name: str, folder: Path) -> Path:
    """The Python of a peer's environment, which is made where it is missing or of other files.

    Args:
        name: Name of the peer's files.
        folder: Where the environments are.

    Raises:
        UnavailableError: If pip cannot make it.
    """
    target, files = folder / name, requirements(name)
    python = target / "bin" / "python"
    wanted = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    mark = target / "made-of"
    if mark.exists() and mark.read_text(encoding="utf-8") == wanted:
        return python
    shutil.rmtree(target, ignore_errors=True)
    commands = [[sys.executable, "-m", "venv", str(target)]]
    for file in files:
        alone = ["--no-deps"] if file.name.endswith(".no-deps.txt") else []
        commands.append([str(python), "-m", "pip", "install", "--quiet", *alone, "-r", str(file)])
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            told = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
            raise UnavailableError(f"its environment cannot be made: {(told or ['no message'])[-1][:300]}")
    mark.write_text(wanted, encoding="utf-8")
    return python


class Peer:
    """The process of a peer. It ends with the block.

    Args:
        python: Python of its environment.
        script: What answers.
        log: Where its standard error goes.
    """

    def __init__(self, python: Path, script: Path, log: Path) -> None:
        self._log = log
        with log.open("a", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                [str(python), str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            )

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Its answer.

        Raises:
            RefusedError: If it makes no such model.
            UnavailableError: If it has no answer, or ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self._process.stdout.readline()
        if not line:
            raise UnavailableError(f"its process ended: {_last_line(self._log)}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise (RefusedError if reply["refused"] else UnavailableError)(reply["error"])
        return reply


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"

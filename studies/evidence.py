"""What a study found, made sure of and put into a folder that can be kept: tables, conditions, cost.

    python studies/evidence.py sst2-minilm --out studies/results/sst2-minilm

    study ─► per size one point (`headline.py`) ─┬─► trained again with seeds, scored on held-out rows
                                                 ├─► measured beside the dense model (`speeds.py`)
                                                 └─► dense models of further seeds (`dense_seeds.py`)
    ─► files (`folder.py`), table, one line of JSON

Each training and each measurement is kept among the study's artifacts: after a kill the same command goes on. --quick
takes 2 seeds and as few steps as the search did, and the folder says so. report.html has several MB: the repository
leaves it out.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.harness import parser, say
from parts.dense_seeds import dense_figures
from parts.folder import result_of, write
from parts.headline import SIZES, chosen, rows, table
from parts.speeds import speed_ups

from search import load, preparation
from search.arguments import default_storage
from search.artifacts import digest
from search.errors import UserError
from search.process import Place
from search.progress import Display
from search.records import PREPARATION
from search.reopening import reopen
from search.run import confirm, guarded, make_console, measured_on


def main() -> None:
    made = parser(__doc__.splitlines()[0])
    made.add_argument("study", help="name of a study that was searched")
    made.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the evidence goes")
    made.add_argument("--storage", help="study database; by default as for the paretobert command")
    made.add_argument("--artifacts", help="artifact folder; by default runs/STUDY/artifacts")
    made.add_argument("--device", default="auto", help="of the confirmation; auto takes the study's")
    made.add_argument("--seeds", type=int, help="trainings of each point (3)")
    made.add_argument("--steps", type=int, help="steps of each training (as many epochs as the dense model had)")
    made.add_argument("--dense-seeds", type=int, help="dense models, the teacher included (5)")
    given = made.parse_args()
    guarded(lambda: gather(given))


def gather(given: Any) -> None:
    """Do all of it."""
    url = given.storage or default_storage(given.study)
    study = load(given.study, url)
    quick, few = given.quick, 2 if given.quick else 3
    trials = chosen(study)
    points = sorted({trial for trial in trials.values() if trial is not None})
    if not points:
        raise UserError(
            f"the study {study.name!r} has no complete, feasible trial that keeps at most {100 * max(SIZES):g} % of "
            f"the encoder, so there is nothing to confirm; search on: paretobert work {study.name} --trials N"
        )
    say(f"points: {', '.join(f'{100 * size:g} %: trial {trial}' for size, trial in trials.items())}")
    steps = given.steps or (study.definition.recovery.steps if quick else None)
    study = confirm(
        given.study,
        storage=url,
        artifacts=given.artifacts,
        device=given.device,
        trials=points,
        points=None,
        seeds=given.seeds or few,
        epochs=None,
        steps=steps,
    )
    # Earlier confirmations of other trials are not what the command in the folder made.
    named = {*points, *(() if study.dense is None else (study.dense.trial,))}
    study = replace(study, confirmations=tuple(each for each in study.confirmations if each.trial in named))
    device = measured_on(given.study, url) if given.device == "auto" else given.device
    with Display(make_console()) as display:
        again = reopen(given.study, Place(url, given.artifacts, device), display, measures=False)
        held_out = preparation.held_out_rows(again.prepared, again.artifacts)
        dense = dense_figures(
            again, held_out, given.dense_seeds or (1 if quick else 5), lambda *stage: display.stage(PREPARATION, *stage)
        )
        speeds = speed_ups(again, points, quick=quick)
    result = result_of(study, rows(study, trials, speeds, dense), quick=quick)
    result["content"] = {**again.prepared.content, "definition": digest(study.definition.model_dump(mode="json"))}
    asked = {"--seeds": given.seeds, "--steps": given.steps, "--dense-seeds": given.dense_seeds}
    parts = [f"{name} {value}" for name, value in asked.items() if value is not None]
    command = " ".join(["python studies/evidence.py", given.study, *(["--quick"] if quick else []), *parts])
    write(study, result, given.out, command)
    for line in table(result):
        say(line)
    say(f"written to {given.out}; report.html has {(given.out / 'report.html').stat().st_size / 1e6:.1f} MB")
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

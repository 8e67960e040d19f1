"""Ours beside its peers: the same checkpoint, data, splits, teacher, training, scoring, measuring and compute.

    python studies/benchmarks/peers/compare.py --quick --json FILE
    python studies/benchmarks/peers/compare.py --peers textpruner modelopt

    paretobert      plan of the tilted ladder, Fisher, distillation: the definition's defaults
    uniform         the same width in every layer, magnitude, cross-entropy: ours, used plainly
    textpruner      training-free, iterative (`with_textpruner.py` says with which settings)
    torch-pruning-* global magnitude, and Taylor (`with_torch_pruning.py`)
    modelopt        NVIDIA's GradNAS, then distilled as in its example (`with_modelopt.py`)
    syne-tune       MO-REA over our space (`with_syne_tune.py`): with trials as its user would write them, and with ours

- Sizes: encoders of at most 75, 50, 25 and 12.5 % of the dense one's parameters (--quick: 50 and 25 %); what each way
  keeps of that stands in the table. Accuracy: GLUE's official dev set of SST-2, which nothing here selects on.
  `distilled`: the same cut with our training instead of its own, which tells what the choice alone is worth.
- `ours more`: accuracy of ours less that of the other, on the same rows, with the interval of rows and seeds.
- `compute`: what one such model takes after the teacher, with importance and, where it is distilled, the logits.
- Hypervolume: accuracy on the dev set of what the selection split puts on the front, reference accuracy 0.5 and the
  dense encoder, with equal compute for each way after the teacher, which all share (`searches.py`). `compared`: the
  same where encoders below the smallest size count as of that size, as some tools make no smaller ones. Ours is
  searched twice: with the definition's defaults, and as slices of a super-network (400 steps, in the compute), each
  recovered by 40 steps at a quarter of the learning rate, which --quick and --partial leave out. Of a search, that one
  and Syne Tune's, the best trial on the selection split stands for each size.
- Model: the packaged checkpoint. Data: under ../shared/data/glue, or where the variable PARETOBERT_GLUE says. 12,000
  training rows, 1,000 whole sentences of them as selection split, 100 steps, 3 seeds; --quick: 1,500, 300, 20 and 1.
  One teacher for all; a seed stands for the rows that importance reads and for the batches of the training.
- The tools lie in environments of their own under runs/benchmarks/peers, which the script makes with pip (torch is in
  three of them). What cannot be made or run says why. Interrupted, it goes on where it was; `--partial` only
  prints what is finished.
"""

import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # harness.py and search_efficiency.py, beside this folder

import comparison
import optuna
import search_efficiency as efficiency
from gather import SEARCHES, TARGETS, Comparison, Found
from harness import finish, parser, say
from ways import OURS, OWN, WAYS, Way

from search import pipeline
from search.errors import UserError

SLICES = Way("paretobert, super-network's slices", OWN, "default")
BUDGET_S = {False: 600.0, True: 60.0}


def rows(way: Way, found: Found, ours: Found | None) -> list[dict[str, Any]]:
    """The rows of a way: one per size, or one that says why there is none."""
    about = {"name": way.title, "version": way.version, "recovery": way.recovery}
    volumes = {"hypervolume": _mean(found.volumes), "hypervolume_compared": _mean(found.compared)}
    if None in found.why_not:
        return [{**about, "why_not": found.why_not[None]}]
    made_ = []
    for share, results in sorted(found.models.items(), reverse=True):
        one = {**about, **comparison.row(share, results), **volumes}
        if found.retrained.get(share):
            one["accuracy_mean_our_recovery"] = comparison.row(share, found.retrained[share])["accuracy_mean"]
        if ours is not None and len(ours.models.get(share, [])) == len(results):
            one["ours_ahead"] = comparison.ahead(ours.models[share], results)
        made_.append(one)
    missing = {share: why for share, why in found.why_not.items() if share in TARGETS[False] + TARGETS[True]}
    made_ += [{**about, "target": share, "why_not": why} for share, why in missing.items() if share not in found.models]
    return made_


def _mean(volumes: list[float]) -> float | None:
    return round(statistics.mean(volumes), 4) if volumes else None


def beside(ours: Found, peers: dict[str, Found]) -> dict[str, Any]:
    """Hypervolumes of ours, their ratios to those of the peers, and the same over the compared sizes.

    Args:
        ours: What ours gave.
        peers: What those peers gave that have a hypervolume of each seed, by their titles.
    """
    wholes = {name: statistics.mean(found.volumes) for name, found in peers.items()}
    compared = {name: statistics.mean(found.compared) for name, found in peers.items()}
    return {
        "hypervolume": _mean(ours.volumes),
        "hypervolumes": ours.volumes,
        **comparison.ratios(statistics.mean(ours.volumes), wholes),
        "compared": {
            "hypervolume": _mean(ours.compared),
            "hypervolumes": ours.compared,
            **comparison.ratios(statistics.mean(ours.compared), compared),
        },
    }


def main() -> None:
    command = parser(__doc__.splitlines()[0])
    names = (*WAYS, *SEARCHES)
    command.add_argument("--peers", nargs="+", choices=names[1:], default=names[1:], help="all by default")
    command.add_argument("--seeds", type=int, help="how many; 3, with --quick 1")
    command.add_argument(
        "--budget", type=float, help="compute of each way and seed after the teacher [s]; 600, with --quick 60"
    )
    command.add_argument("--partial", action="store_true", help="measure nothing more, print what is finished")
    given = command.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pipeline.ALWAYS = ("encoder_share", efficiency.HELD_OUT)
    try:
        run = Comparison(
            quick=given.quick,
            seeds=given.seeds or (1 if given.quick else 3),
            budget_s=given.budget or BUDGET_S[given.quick],
            partial=given.partial,
        )
    except UserError as error:
        raise SystemExit(f"compare.py: {error}; name GLUE's folder in PARETOBERT_GLUE") from None
    ours = run.of_sizes(OURS)
    table: list[dict[str, Any]] = []
    peers: dict[str, Found] = {}
    for name in given.peers:
        found = run.of_sizes(name) if name in WAYS else run.of_search(name)
        way = WAYS.get(name) or SEARCHES[name]
        table += rows(way, found, ours)
        if len(found.volumes) == run.seeds and None not in found.why_not:
            peers[way.title] = found
    sliced = None if given.quick or given.partial else run.of_slices()
    own, slices = rows(WAYS[OURS], ours, None), rows(SLICES, sliced, None) if sliced else []
    volumes = beside(ours, peers)
    for line in comparison.lines(own + slices + table):
        say(line)
    settings = run.definition
    finish(
        {
            "benchmark": "peers",
            "quick": given.quick,
            "partial": given.partial,
            "seeds": run.seeds,
            "budget_s": run.budget_s,
            "train_rows": settings.task.train_rows,
            "selection_rows": settings.task.selection_rows,
            "steps": settings.recovery.steps,
            "batch_size": settings.recovery.batch_size,
            "learning_rate": settings.recovery.learning_rate,
            "importance_rows": settings.importance.rows,
            "dense": run.bench.dense(),
            "preparation_s": run.shared.preparation,
            "ours": {"name": "paretobert", "version": OWN, "sizes": own, **volumes},
            "ours_with_supernet": {"sizes": slices, **beside(sliced, peers)} if sliced else None,
            "peers": table,
            "hypervolumes": {name: found.volumes for name, found in peers.items()},
            "hypervolumes_compared": {name: found.compared for name, found in peers.items()},
            "hypervolume_ratio_to_best_peer": volumes["hypervolume_ratio_to_best_peer"],
        },
        given.json,
    )


if __name__ == "__main__":
    main()

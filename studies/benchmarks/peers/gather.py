"""What each way gives: a model of each size and seed, the same cuts with our training, and hypervolumes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import search_efficiency as efficiency
import searches
from bench import Bench
from environments import HERE, Peer, RefusedError, UnavailableError, version
from harness import say
from kept import Kept
from ways import OURS, WAYS, Cell, Way, opened

from search import Definition
from search.artifacts import Artifacts, digest
from search.errors import TrialError

FOLDER = HERE.parents[2] / "runs" / "benchmarks" / "peers"
TARGETS = {False: (0.75, 0.5, 0.25, 0.125), True: (0.5, 0.25)}
SEARCHES = {
    "syne-tune": Way("Syne Tune MO-REA", version("syne_tune", "syne-tune"), "cross-entropy", "syne_tune"),
    "syne-tune-ours": Way("Syne Tune MO-REA, our trials", version("syne_tune", "syne-tune"), "default", "syne_tune"),
}


@dataclass
class Found:
    """Everything that a way gave.

    Attributes:
        models: Results by size, one per seed.
        retrained: The same cuts with our training.
        volumes: Hypervolume, one per seed.
        compared: The same over the sizes that are compared alone: what is smaller counts as of the smallest of them.
        why_not: Why a size has no model; None stands for the whole way.
    """

    models: dict[float, list[dict[str, Any]]]
    retrained: dict[float, list[dict[str, Any]]]
    volumes: list[float]
    compared: list[float]
    why_not: dict[float | None, str]

    @classmethod
    def nothing(cls) -> Self:
        """Of a way that was not tried yet."""
        return cls({}, {}, [], [], {})


class Comparison:
    """One run: what is shared by all ways, and what each of them gives.

    Args:
        quick: Whether to take the smaller numbers.
        seeds: How many.
        budget_s: Compute of each way and seed.
        partial: Whether only what is finished is shown. Our own search is finished first in any case.
    """

    def __init__(self, *, quick: bool, seeds: int, budget_s: float, partial: bool = False) -> None:
        self.quick, self.seeds, self.budget_s, self.partial = quick, seeds, budget_s, partial
        base = efficiency.definition(seed=0, quick=quick)
        recovery = base.recovery.model_copy(update={"steps": 20 if quick else 100})
        self.steps = {"default": recovery.steps, "supernet-recovered": base.recovery.steps}
        self.definition: Definition = base.model_copy(update={"name": "peers", "recovery": recovery})
        how = self.definition.model_dump(mode="json", exclude={"name"})
        self.folder = FOLDER / f"{'quick-' if quick else ''}{digest(how)[:12]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.shared = efficiency.Seed.of(self.definition, self.folder)
        self.bench = Bench(self.shared.prepared, self.folder, iterations=4 if quick else 16)
        self.kept = Kept(self.folder / "models.jsonl", adds=not partial)

    def spent_s(self, recovery: str) -> float:
        """Compute of the preparation that a way needs after the teacher, importance excepted."""
        return 0.0 if recovery == "cross-entropy" else self.shared.preparation["teacher logits"]

    def of_sizes(self, name: str) -> Found:
        """What a way gives that makes a model of the size that it is asked for."""
        way, found = WAYS[name], Found.nothing()
        try:
            start = opened(way, FOLDER) if way.files and not self.partial else None
        except UnavailableError as error:
            return replace(found, why_not={None: str(error)})
        with ExitStack() as stack:
            peer = stack.enter_context(start()) if start else None
            for seed in range(self.seeds):
                self._of_seed(name, peer, seed, found)
        for results in found.models.values():
            results[:] = [{**one, "compute_s": one["compute_s"] + self.spent_s(way.recovery)} for one in results]
        if not found.models:
            found.why_not[None] = "; ".join(dict.fromkeys(found.why_not.values()))
        return found

    def _of_seed(self, name: str, peer: Peer | None, seed: int, found: Found) -> None:
        recovery, targets = WAYS[name].recovery, TARGETS[self.quick]

        def make(share: float, how: str = recovery) -> dict[str, Any] | None:
            cell, measure = Cell(name, share, seed, how), share in targets and how == recovery
            try:
                result = self.kept.get(asdict(cell), lambda: self._told(cell, peer, measure=measure))
            except (UnavailableError, TrialError, ValueError) as error:
                result = {"why_not": str(error)}
            if "why_not" in result:
                found.why_not[share] = result["why_not"]
                say(f"{name}, {share:g}: {result['why_not']}")
                return None
            return result

        for share in targets:
            result = make(share)
            if result is not None:
                found.models.setdefault(share, []).append(result)
                again = result if recovery == "default" else make(share, "default")
                found.retrained.setdefault(share, []).extend([again] if again else [])
        if not found.models:
            return
        if name == OURS:
            points, spent_s = self._our_search("default", seed)
        else:
            try:
                once_s = self._once_s(name, peer, seed)
            except UnavailableError as error:
                say(f"{name}, seed {seed}: {error}")
                return

            def further(share: float) -> dict[str, Any] | None:
                result = make(share)
                return result and {**result, "compute_s": result["compute_s"] - min(once_s, result["pruning_s"])}

            spent_s = self.spent_s(recovery) + once_s
            points = searches.until_used_up(further, spent_s=spent_s, budget_s=self.budget_s)
        if not self.partial or spent_s + sum(one.compute_s for one in points) >= self.budget_s:
            self._add_volumes(found, points)

    def _once_s(self, name: str, peer: Peer | None, seed: int) -> float:
        """Compute of what a way does once for all sizes; 0 where its script does each size from the beginning."""
        if not WAYS[name].reads_once:
            return 0.0
        cell = Cell(name, TARGETS[self.quick][0], seed, WAYS[name].recovery)

        def read() -> dict[str, Any]:
            assert peer is not None
            return {"seconds": self.bench.once(cell, peer)}

        return float(self.kept.get({"way": name, "seed": seed, "once": True}, read)["seconds"])

    def _add_volumes(self, found: Found, points: list[efficiency.Point]) -> None:
        found.volumes.append(volume(points))
        found.compared.append(volume(points, smallest=min(TARGETS[self.quick])))

    def _told(self, cell: Cell, peer: Peer | None, *, measure: bool) -> dict[str, Any]:
        try:
            result = self.bench.fill(cell, peer, measure=measure)
        except RefusedError as error:
            return {"why_not": str(error)}
        say(
            f"{cell.way}, at most {cell.share:g}, seed {cell.seed}, {cell.recovery}: encoder "
            f"{result['encoder_share']:.3f}, accuracy {result['accuracy']:.4f}, {result['compute_s']:.1f} s"
        )
        return result

    def of_slices(self) -> Found:
        """What our search of slices of a super-network gives, recovered by few and gentle steps."""
        found = Found.nothing()
        for seed in range(self.seeds):
            points, _spent_s = self._our_search("supernet-recovered", seed)
            self._add_volumes(found, points)
            trials = [
                {"encoder_share": one.share, "selection": one.selection, "accuracy": one.held_out} for one in points
            ]
            self._add_best(found, trials)
        return found

    def _add_best(self, found: Found, trials: list[dict[str, Any]]) -> None:
        """What a search has for each size: the best of its trials, at the price of all of them."""
        for share in TARGETS[self.quick]:
            best = searches.best_within(trials, share)
            if best is not None:
                found.models.setdefault(share, []).append({**best, "compute_s": self.budget_s})

    def _our_search(self, arm: str, seed: int) -> tuple[list[efficiency.Point], float]:
        """Trials of an arm of `search_efficiency.py`, and the compute of its preparation."""
        engine = self.definition.engine.model_copy(update={"seed": seed})
        recovery = self.definition.recovery.model_copy(update={"steps": self.steps[arm]})
        folder = self.folder / f"search-{seed}"
        folder.mkdir(exist_ok=True)
        base = self.definition.model_copy(update={"engine": engine, "recovery": recovery})
        needed = {stage: self.shared.preparation[stage] for stage in ("teacher logits", "importance")}
        own = replace(
            self.shared, base=base, folder=folder, artifacts=Artifacts(folder / "artifacts"), preparation=needed
        )
        return efficiency.run_engine(arm, own, self.budget_s)

    def of_search(self, name: str) -> Found:
        """What a search gives that proposes plans: the best trial within each size, and the hypervolume."""
        way, found = SEARCHES[name], Found.nothing()
        spent_s = self.spent_s(way.recovery)
        try:
            for seed in range(self.seeds):
                with _searcher(way) as peer:
                    trials = searches.syne_tune(
                        self.bench,
                        self.shared.prepared,
                        peer,
                        self.kept,
                        way.recovery,
                        seed=seed,
                        spent_s=spent_s,
                        budget_s=self.budget_s,
                    )
                say(f"{name}, seed {seed}: {len(trials)} trials")
                self._add_volumes(found, [searches.point(one) for one in trials])
                self._add_best(found, trials)
        except UnavailableError as error:
            return replace(found, models={}, why_not={None: str(error)})
        for share in TARGETS[self.quick]:
            if share not in found.models:
                found.why_not[share] = "none of its trials was so small within the compute"
        return found


@contextmanager
def _searcher(way: Way) -> Iterator[Peer]:
    with opened(way, FOLDER)() as peer:
        yield peer


def volume(points: list[efficiency.Point], *, smallest: float = 0.0) -> float:
    """Hypervolume of what the selection split puts on the front, with the accuracies of the held-out split.

    Args:
        points: The models.
        smallest: Share of the encoder that smaller ones count as.
    """
    seen = [replace(one, share=max(one.share, smallest)) for one in points]
    return efficiency.curve(seen, 0.0)["held_out"][-1] if points else 0.0

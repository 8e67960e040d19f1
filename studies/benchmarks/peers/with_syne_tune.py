"""Syne Tune 0.16.0: MO-REA (multi-objective regularised evolution) proposes, by ask and tell; the driver evaluates.

- Its space: for each dimension the number of heads, or of neuron blocks. It starts from the dense model, as our search
  does; its population is that of our search, not its default of 100, which no compute here would fill.
- Its first population is drawn from numpy's global generator, whatever `random_seed` says: so that one is seeded too,
  and another process proposes the same again.
- Requests: {"ask": {name: units, ...}} and {"tell": [value, value]}, both to be minimised.
"""

from typing import Any

from exchange import serve, timed

METRICS = ["error", "share"]


class Proposer:
    """One search."""

    def __init__(self) -> None:
        self._scheduler: Any = None
        self._trial: Any = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Propose, or hear what came of the last proposal."""
        if self._scheduler is None:
            self._scheduler = _scheduler(request)  # with its imports, which do not count
        work = self._told if "tell" in request else self._asked
        reply, seconds = timed(lambda: work(request))
        return {**reply, "seconds": seconds}

    def _asked(self, _request: dict[str, Any]) -> dict[str, Any]:
        self._trial = self._scheduler.ask()
        return {"units": {name: int(count) for name, count in self._trial.config.items()}}

    def _told(self, request: dict[str, Any]) -> dict[str, Any]:
        self._scheduler.tell(self._trial, dict(zip(METRICS, request["tell"], strict=True)))
        return {}


def _scheduler(request: dict[str, Any]) -> Any:
    import numpy
    from syne_tune.config_space import randint
    from syne_tune.optimizer.schedulers.ask_tell_scheduler import AskTellScheduler
    from syne_tune.optimizer.schedulers.multiobjective import MultiObjectiveRegularizedEvolution
    from syne_tune.optimizer.schedulers.single_fidelity_scheduler import SingleFidelityScheduler

    numpy.random.seed(request["seed"])
    space = {name: randint(0, units) for name, units in request["ask"].items()}
    searcher = MultiObjectiveRegularizedEvolution(
        config_space=space,
        points_to_evaluate=[dict(request["ask"])],
        population_size=request["population"],
        sample_size=max(2, request["population"] // 2),
        random_seed=request["seed"],
    )
    return AskTellScheduler(
        SingleFidelityScheduler(space, metrics=METRICS, searcher=searcher, random_seed=request["seed"])
    )


if __name__ == "__main__":
    serve(Proposer().answer)

"""The ways to a smaller model that are compared, and the plan of ours that matches a size."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from environments import HERE, Peer, made, version

from search.bert.importance import Scores
from search.bert.ladder import tilted
from search.plan import Plan, Shape, encoder_parameters
from search.space import Space

TILT = 0.5
"""Of the plans that the ladder proposes: half-way between the same ratio everywhere and one threshold of importance."""


@dataclass(frozen=True)
class Way:
    """One way.

    Attributes:
        title: Its name in the table.
        version: Version of the tool.
        recovery: `cross-entropy`, `logits` or `default`.
        files: Name of its requirements and script; None for what needs none.
        asks: What its script is told besides.
        reads_once: Whether it reads gradients of the dense model, which are the same for all sizes.
    """

    title: str
    version: str
    recovery: str
    files: str | None = None
    asks: dict[str, Any] = field(default_factory=dict)
    reads_once: bool = False


OURS = "paretobert"
OWN = installed("paretobert")
WAYS = {
    OURS: Way("paretobert", OWN, "default"),
    "uniform": Way("uniform, magnitude, fine-tuned", OWN, "cross-entropy"),
    "textpruner": Way("TextPruner", version("textpruner", "textpruner"), "cross-entropy", "textpruner"),
    **{
        f"torch-pruning-{name}": Way(
            f"Torch-Pruning, {name}",
            version("torch_pruning", "torch-pruning"),
            "cross-entropy",
            "torch_pruning",
            {"importance": name},
            reads_once=name == "taylor",
        )
        for name in ("magnitude", "taylor")
    },
    "modelopt": Way("ModelOpt GradNAS", version("modelopt", "nvidia-modelopt"), "logits", "modelopt", reads_once=True),
}
"""All that make a model of a size that is asked for; ours first."""


@dataclass(frozen=True)
class Cell:
    """One model: a way, the largest share of the encoder that it may have, a seed, and how it is trained."""

    way: str
    share: float
    seed: int
    recovery: str


def opened(way: Way, folder: Path) -> Callable[[], Peer]:
    """What starts the process of a way that has one.

    Raises:
        UnavailableError: If its environment cannot be made.
    """
    assert way.files is not None
    python = made(way.files, folder / "environments")
    script, log = HERE / f"with_{way.files}.py", folder / f"{way.files}.log"
    return lambda: Peer(python, script, log)


def encoder_share(plan: Plan, shape: Shape) -> float:
    """Parameters of the encoder as a share of the dense one's."""
    return encoder_parameters(plan, shape) / encoder_parameters(Plan.dense(shape), shape)


def matched(space: Space, scores: Scores, share: float) -> Plan:
    """The largest plan of the tilted ladder whose encoder has at most this share of the dense one's parameters.

    Args:
        space: The study's dimensions.
        scores: Importance of all heads and neurons.
        share: Share of the dense encoder's parameters.

    Raises:
        ValueError: If none is so small.
    """
    plans = [space.plan(tilted(space, scores, size=step / 400, tilt=TILT)) for step in range(401)]
    within = [plan for plan in plans if encoder_share(plan, space.shape) <= share + 1e-9]
    if not within:
        raise ValueError(f"no plan of the space has an encoder of {share} or less of the dense one")
    return max(within, key=lambda plan: encoder_parameters(plan, space.shape))

"""The super-network of a study among its artifacts: made once, where the study asks for it.

teacher, its logits, importance, space ──► trained as search.bert.supernet says ──► supernet-…/ (a dense checkpoint)
"""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from search import costs
from search.artifacts import Artifacts, OnWait
from search.bert.checkpoint import load, save
from search.bert.encoding import Encoded
from search.bert.importance import Scores
from search.bert.supernet import train_supernet
from search.definition import Definition
from search.errors import TrialError, UserError
from search.keys import SUPERNET, supernet_key
from search.space import Space

STAGE = "super-network"
"""Name of the stage, as people see it."""


def made(
    definition: Definition,
    artifacts: Artifacts,
    teacher: PreTrainedModel,
    importance: Mapping[str, Any],
    scores: Scores,
    space: Space,
    rows: Encoded,
    teacher_logits: Tensor,
    *,
    pad_id: int,
    on_step: Callable[[str, int, int], None],
    on_wait: OnWait,
) -> PreTrainedModel:
    """The super-network, trained now if it was not before.

    Interrupted, it goes on from about a minute before, on the machine where it was begun.

    Args:
        definition: The study's definition.
        artifacts: Where it is kept.
        teacher: The dense model that it begins as; left as it is.
        importance: Everything that determines the importance scores.
        scores: Importance of the teacher's heads and neurons.
        space: The study's dimensions.
        rows: The training split.
        teacher_logits: The teacher's logits on it.
        pad_id: Number of the padding token.
        on_step: Told the name of the stage, the steps done and the steps in all.
        on_wait: Told while another process makes it.

    Returns:
        The super-network, in evaluation mode, on the teacher's device.

    Raises:
        UserError: If its training diverges, or it cannot be kept.
    """
    determined = supernet_key(definition, importance)
    state = artifacts.unfinished(SUPERNET, determined)

    def make(folder: Path) -> None:
        model = copy.deepcopy(teacher)
        counter = None if state.exists() else artifacts.counter  # it knows nothing of what was before an interruption
        before_j = counter.open_j() if counter else 0.0
        try:
            seconds = train_supernet(
                model,
                rows,
                teacher_logits,
                scores,
                space,
                definition.supernet,
                precision=definition.recovery.precision,
                pad_id=pad_id,
                seed=definition.engine.seed,
                state=state,
                on_step=lambda done, total: on_step(STAGE, done, total),
            )
        except TrialError as failure:
            state.unlink(missing_ok=True)
            raise UserError(
                f"the super-network cannot be trained: {failure}; lower supernet.learning_rate "
                f"(now {definition.supernet.learning_rate:g})"
            ) from None
        save(model, folder)
        costs.note(folder, seconds, counter, before_j=before_j)

    return loaded(artifacts.made(SUPERNET, determined, make, on_wait=on_wait), teacher.device)


def loaded(folder: Path, device: torch.device) -> PreTrainedModel:
    """The super-network in an artifact's folder, on a device."""
    model = load(folder)
    torch.nn.Module.to(model, device)
    return model

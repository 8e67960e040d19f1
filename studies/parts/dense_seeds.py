"""How much does the dense model itself vary with its seed? The teacher is one draw of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from objectives import all_metrics
from search import keys, preparation
from search.bert.checkpoint import load_dense
from search.bert.encoding import Encoded
from search.bert.training import score
from search.bert.vocabulary import keep_tokens
from search.reopening import Reopened

DENSE_SEEDS = 4
"""Third part of the seed of a further dense model, which no search and no confirmation has."""

OnStage = Callable[[str, int, int], None]


def dense_figures(again: Reopened, held_out: Encoded, seeds: int, on_stage: OnStage) -> list[float]:
    """The task's metric on the held-out rows of dense models with several seeds, the teacher's first.

    Args:
        again: The study.
        held_out: The held-out rows.
        seeds: How many; 1 where the checkpoint was fine-tuned already.
        on_stage: Told what is being done.
    """
    prepared, definition = again.prepared, again.study.definition
    hashes = keys.wanted(definition, prepared.content)

    def figure(model: Any) -> float:
        logits = score(model, held_out, pad_id=prepared.pad_id, batch_size=preparation.SCORING_BATCH, precision="fp32")
        return float(all_metrics(logits, held_out.labels)[definition.task.metric].value)

    def again_with(seed: int) -> float:
        def make(folder: Path) -> None:
            dense = load_dense(definition.model, labels=definition.task.outputs, seed=seed)
            if prepared.vocabulary is not None:
                keep_tokens(dense, prepared.vocabulary.kept)
            torch.nn.Module.to(dense, prepared.device)
            preparation.fine_tune(
                dense,
                definition,
                prepared.train,
                pad_id=prepared.pad_id,
                seed=seed,
                on_step=lambda done, total: on_stage("dense model of another seed", done, total),
            )
            (folder / "figure.json").write_text(json.dumps(figure(dense)), encoding="utf-8")

        key = {"teacher": hashes["teacher"], "metric": definition.task.metric, "seed": seed}
        return float(json.loads((again.artifacts.made("dense-again", key, make) / "figure.json").read_text()))

    own = definition.engine.seed
    more = 0 if definition.teacher.fine_tuned else seeds - 1
    drawn = [int(np.random.SeedSequence([own, 0, DENSE_SEEDS, n]).generate_state(1)[0]) for n in range(more)]
    return [figure(prepared.teacher), *(again_with(seed) for seed in drawn)]

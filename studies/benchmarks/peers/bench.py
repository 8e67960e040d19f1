"""How the model of a way and a size is made, trained, scored and measured.

    way, share, seed ──► cut model (of a peer, or ours) ──► the training that all get ──► scores ──► paretobert measure

- All get the same training: steps, batches, learning rate, word embeddings fixed, no dropout. Plain ones with
  cross-entropy, those whose authors distil with the teacher's logits alone, ours with the definition's default.
- Compute: seconds of CPU time (of the wall on a GPU), in the peer's process and here, with importance, cut, training
  and the scoring of the selection split. Neither the start of a process, nor handing over, nor what is only measured.
"""

import shutil
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from environments import Peer, UnavailableError
from exchange import even
from harness import Clock
from torch import Tensor
from transformers import PreTrainedModel
from translated import MistranslatedError, rebuilt
from ways import OURS, WAYS, Cell, encoder_share, matched

from search.bert.checkpoint import save
from search.bert.choose import choose
from search.bert.encoding import Encoded
from search.bert.importance import Scores, importance
from search.bert.pruned import plan_of
from search.bert.recovery import recover
from search.bert.refit import fitting_batches
from search.bert.surgery import cut
from search.bert.training import score
from search.deploy.shipped import write_tokenizer
from search.keys import wanted
from search.measure import measure_alone
from search.plan import Plan
from search.preparation import SCORING_BATCH, Prepared, held_out_rows


class Bench:
    """Makes the models of cells.

    Args:
        prepared: Teacher, rows and logits.
        folder: Where everything is kept.
        iterations: Of TextPruner.
    """

    def __init__(self, prepared: Prepared, folder: Path, *, iterations: int) -> None:
        assert prepared.artifacts is not None
        teacher = prepared.artifacts.found("teacher", wanted(prepared.definition, prepared.content)["teacher"])
        rows = prepared.artifacts.found("tokens", wanted(prepared.definition, prepared.content)["tokens"])
        assert teacher is not None
        assert rows is not None
        self._prepared, self._folder, self._iterations = prepared, folder, iterations
        self._teacher, self._rows = teacher, rows / "train.safetensors"
        self._held_out = held_out_rows(prepared, prepared.artifacts)
        self.scores = cache(self._scores)

    def fill(self, cell: Cell, peer: Peer | None, *, measure: bool) -> dict[str, Any]:
        """Everything about one model.

        Raises:
            UnavailableError: If the peer cannot make it.
        """
        model, pruning_s = self.cut(cell, peer)
        result = self.scored(model, cell.recovery, cell.seed)
        result |= {"compute_s": round(pruning_s + result["compute_s"], 3), "pruning_s": round(pruning_s, 3)}
        return {**result, **(self.measure(model, cell, result["accuracy"]) if measure else {})}

    def scored(self, model: PreTrainedModel, recovery: str, seed: int) -> dict[str, Any]:
        """Train a cut model in place and score it: its sizes, both splits, and the seconds that it took."""
        seconds = self.train(model, recovery, seed)
        selection, scoring_s = self.accuracy(model)
        answers = self._right(model, self._held_out).tolist()
        plan = plan_of(model.config)
        return {
            "encoder_share": encoder_share(plan, self._prepared.shape),
            "heads": list(plan.heads),
            "neurons": list(plan.neurons),
            "selection": selection,
            "accuracy": sum(answers) / len(answers),
            "answers": "".join("01"[answer] for answer in answers),
            "compute_s": round(seconds + scoring_s, 3),
        }

    def dense(self) -> dict[str, float]:
        """Accuracy of the teacher on both splits."""
        held_out = float(self._right(self._prepared.teacher, self._held_out).float().mean())
        return {"selection": round(self.accuracy(self._prepared.teacher)[0], 4), "accuracy": round(held_out, 4)}

    def cut(self, cell: Cell, peer: Peer | None) -> tuple[PreTrainedModel, float]:
        """The model of a cell before training, and the seconds that it took."""
        if peer is not None:
            return self._of_peer(cell, peer)
        given = self._prepared
        if cell.way == OURS:
            scores, seconds = self.scores(given.definition.importance.method, cell.seed)
            plan = matched(given.space, scores, cell.share)
        else:
            scores, seconds = self.scores("magnitude", cell.seed)
            heads, neurons = even(cell.share, given.teacher.config)
            plan = Plan((heads,) * given.shape.layers, (neurons,) * given.shape.layers)
        clock = Clock(given.device)
        return cut(given.teacher, choose(plan, scores)), seconds + clock.seconds()

    def _of_peer(self, cell: Cell, peer: Peer) -> tuple[PreTrainedModel, float]:
        given, out = self._prepared, self._folder / "cuts" / f"{cell.way}-{cell.share:g}-{cell.seed}"
        seconds = out / "seconds"
        if not seconds.exists():  # the same cut is trained twice; an interrupted one is made again
            seconds.write_text(str(self._asked(cell, peer, out)["seconds"]), encoding="utf-8")
        try:
            return rebuilt(out, given.teacher).to(given.device), float(seconds.read_text(encoding="utf-8"))
        except MistranslatedError as error:
            raise UnavailableError(str(error)) from None

    def once(self, cell: Cell, peer: Peer) -> float:
        """Seconds of what a peer does for a size that is the same for all sizes.

        Raises:
            UnavailableError: If the peer cannot make that size.
        """
        return float(self._asked(cell, peer, self._folder / "cuts" / f"{cell.way}-once-{cell.seed}")["once"])

    def _asked(self, cell: Cell, peer: Peer, out: Path) -> dict[str, Any]:
        """A peer's answer to the request for a model, which is in the folder then."""
        shutil.rmtree(out, ignore_errors=True)
        request = {
            "teacher": str(self._teacher),
            "rows": str(self._rows),
            "pad_id": self._prepared.pad_id,
            "share": cell.share,
            "seed": cell.seed,
            "count": self._prepared.definition.importance.rows,
            "iterations": self._iterations,
            "out": str(out),
        }
        return peer.ask({**request, **WAYS[cell.way].asks})

    def _scores(self, method: str, seed: int) -> tuple[Scores, float]:
        """Importance of one seed, and the seconds that it took."""
        given, clock = self._prepared, Clock(self._prepared.device)
        rows = fitting_batches(
            given.train, given.definition.importance.rows, pad_id=given.pad_id, seed=seed, device=given.device
        )
        return importance(method, given.teacher, rows, seed=seed), clock.seconds()

    def train(self, model: PreTrainedModel, recovery: str, seed: int) -> float:
        """Train a model in place; the seconds that it took."""
        given, clock = self._prepared, Clock(self._prepared.device)
        weight = {"cross-entropy": 0.0, "logits": 1.0}.get(recovery, given.definition.recovery.distillation)
        recover(
            model,
            given.train,
            given.teacher_logits,
            given.definition.recovery.model_copy(update={"distillation": weight}),
            pad_id=given.pad_id,
            seed=seed,
            on_step=lambda _done, _total: None,
        )
        return clock.seconds()

    def accuracy(self, model: PreTrainedModel) -> tuple[float, float]:
        """Accuracy on the selection split, and the seconds that it took."""
        given, clock = self._prepared, Clock(self._prepared.device)
        right = self._right(model, given.selection)
        return float(right.float().mean()), clock.seconds()

    def _right(self, model: PreTrainedModel, rows: Encoded) -> Tensor:
        logits = score(model, rows, pad_id=self._prepared.pad_id, batch_size=SCORING_BATCH, precision="fp32")
        return logits.argmax(dim=1).cpu() == rows.labels

    def measure(self, model: PreTrainedModel, cell: Cell, accuracy: float) -> dict[str, Any]:
        """What `paretobert measure` says of the saved model, the dense one beside it.

        Raises:
            RuntimeError: If its accuracy is another than the one that was scored here.
        """
        task, how = self._prepared.definition.task, self._prepared.definition.latency.model_dump()
        out = self._folder / "models" / "-".join(map(str, asdict(cell).values())).replace(" ", "-")
        out.mkdir(parents=True, exist_ok=True)
        save(model, out)
        write_tokenizer(self._teacher, out, max_tokens=task.max_tokens)
        data = {
            "data": self._prepared.definition.data,
            "split": "dev",
            "text": task.text,
            "max_tokens": task.max_tokens,
        }
        device = self._prepared.device.type
        card = measure_alone(str(out), device=device, energy="model", **data, **how).quantities
        dense = measure_alone(str(self._teacher), device=device, energy="model", **how).quantities
        if abs(card["accuracy"]["value"] - accuracy) > 1e-9:
            raise RuntimeError(f"{cell}: measured accuracy {card['accuracy']['value']}, scored {accuracy}")
        shutil.rmtree(out)
        own, whole = card["latency_ms"]["value"], dense["latency_ms"]["value"]
        return {
            "latency_ms": round(own, 3),
            "dense_latency_ms": round(whole, 3),
            "speed_up": round(whole / own, 3),
            "parameters": int(card["parameters"]["value"]),
            "energy_mj": round(card["energy_mj"]["value"], 4),
        }

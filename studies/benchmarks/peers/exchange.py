"""What the scripts of the peers share. It runs in their environments: torch, transformers and safetensors, no `search`.

    driver ── {"share": 0.25, "seed": 0, "out": FOLDER, ...} ──► script of the peer
           ◄─ {"seconds": 1.9, "once": 1.5}                  ──  FOLDER/model.safetensors, FOLDER/probe.safetensors

`once` of the seconds went into what is the same for all sizes, the gradients of the dense model say.

One line of JSON each way over the standard streams; what a tool prints goes to the script's standard error. A probe is
a batch with the logits that the peer's own model gives it: the driver checks that the model it rebuilds answers alike.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PROBE_ROWS = 16


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer requests until the standard input ends; an error is an answer too.

    A ValueError refuses: the tool makes no such model, however often it is asked.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line))
        except Exception as error:  # whatever a tool raises is its answer
            traceback.print_exc()
            told = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
            reply = {"error": told, "refused": isinstance(error, ValueError)}
        print(json.dumps(reply), file=replies, flush=True)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What some work gives, and the seconds of CPU time of all threads that it took; on a GPU the peers do not run."""
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


class Watched:
    """Batches that a tool reads, and the seconds of CPU time from the first of them until none was left.

    Args:
        batches: The batches.
    """

    def __init__(self, batches: list[dict[str, Any]]) -> None:
        self._batches = batches
        self.seconds = 0.0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Each batch; the time is known when they are used up."""
        start = time.process_time()
        yield from self._batches
        self.seconds = time.process_time() - start


def teacher(request: dict[str, Any]) -> Any:
    """The dense classifier, as plain transformers loads it, in evaluation mode."""
    from transformers import BertForSequenceClassification

    return BertForSequenceClassification.from_pretrained(request["teacher"], attn_implementation="eager").eval()


def batches(request: dict[str, Any], *, count: int | None = None, size: int = 32) -> list[dict[str, Any]]:
    """Training rows, drawn with the request's seed, as batches with labels.

    Args:
        request: Names the file of the rows and the padding token.
        count: Rows to draw; None takes as many as the request says.
        size: Rows per batch.
    """
    import torch
    from safetensors.torch import load_file

    rows = load_file(request["rows"])
    offsets, labels = rows["offsets"].tolist(), rows["labels"]
    dice = torch.Generator().manual_seed(request["seed"])
    drawn = torch.randperm(len(labels), generator=dice)[: count or request["count"]].tolist()
    found = []
    for start in range(0, len(drawn), size):
        numbers = drawn[start : start + size]
        widest = max(offsets[row + 1] - offsets[row] for row in numbers)
        batch = {
            "input_ids": torch.full((len(numbers), widest), request["pad_id"]),
            "attention_mask": torch.zeros(len(numbers), widest, dtype=torch.int64),
            "token_type_ids": torch.zeros(len(numbers), widest, dtype=torch.int64),
            "labels": labels[numbers],
        }
        for place, row in enumerate(numbers):
            own = slice(offsets[row], offsets[row + 1])
            length = own.stop - own.start
            batch["input_ids"][place, :length] = rows["ids"][own].long()
            batch["token_type_ids"][place, :length] = rows["types"][own].long()
            batch["attention_mask"][place, :length] = 1
        found.append(batch)
    return found


def encoder_size(model: Any) -> int:
    """Parameters of the encoder of a BERT classifier."""
    return sum(parameter.numel() for parameter in model.bert.encoder.parameters())


def even(share: float, config: Any) -> tuple[int, int]:
    """Heads and neurons per layer, the same in each, that make an encoder of at most this share of the dense one.

    Heads keep the share, rounded, at least one; neurons take what is left, at least one.

    Args:
        share: Share of the dense encoder's parameters, above 0 and at most 1.
        config: Config of the dense model.
    """
    hidden, width = config.hidden_size, config.hidden_size // config.num_attention_heads
    head, neuron, fixed = 4 * hidden * width + 3 * width, 2 * hidden + 1, 6 * hidden
    allowed = share * (config.num_attention_heads * head + config.intermediate_size * neuron + fixed)
    heads = min(max(1, round(share * config.num_attention_heads)), config.num_attention_heads)
    neurons = int((allowed - fixed - heads * head + 1e-6) // neuron)
    return heads, min(max(1, neurons), config.intermediate_size)


def hand_over(model: Any, request: dict[str, Any]) -> None:
    """Write what is left of the model, and a probe, into the folder of the request."""
    import torch
    from safetensors.torch import save_file

    folder = Path(request["out"])
    folder.mkdir(parents=True, exist_ok=True)
    model.eval()
    probe = batches(request, count=PROBE_ROWS, size=PROBE_ROWS)[0]
    del probe["labels"]
    with torch.no_grad():
        probe["logits"] = model(**probe).logits
    weights = {name: weight.detach().contiguous().clone() for name, weight in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    save_file({name: value.contiguous() for name, value in probe.items()}, folder / "probe.safetensors")

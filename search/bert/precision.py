"""In which numbers a model is deployed, and what it answers in them.

fp32    float32, as it was trained
bf16    bfloat16: half of the bytes
int8    exported to ONNX and dynamically quantised to 8 bits, run by ONNX Runtime on the CPU (extra: onnx)
"""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from objectives.onnx_graph import inputs_of, quantised, runner, to_onnx
from search.bert.encoding import Encoded, collate, scoring_batches
from search.bert.training import OnStep, score


def score_in(
    precision: str,
    model: PreTrainedModel,
    rows: Encoded,
    *,
    pad_id: int,
    batch_size: int,
    on_step: OnStep | None = None,
) -> Tensor:
    """Logits of every row as the deployed model computes them.

    Args:
        precision: `fp32`, `bf16` or `int8`.
        model: A classifier in float32 and in eval mode; left as it is.
        rows: The split to score.
        pad_id: Number of the padding token.
        batch_size: Rows per batch. In int8 it has a little influence on the logits: a batch has one range of numbers.
        on_step: Told after each batch.

    Returns:
        Logits (rows, labels), float32, on the CPU.

    Raises:
        KeyError: If there is no such precision.
    """
    return _SCORE[precision](model, rows, pad_id, batch_size, on_step)


def in_bf16(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model in bfloat16."""
    twin = copy.deepcopy(model)
    torch.nn.Module.to(twin, torch.bfloat16)
    return twin


def graph_logits(
    graph: bytes | Path, rows: Encoded, *, pad_id: int, batch_size: int, on_step: OnStep | None = None
) -> Tensor:
    """Logits of every row as ONNX Runtime computes them on the CPU, with as many threads as torch has.

    Args:
        graph: An ONNX graph (`objectives.onnx_graph.to_onnx`), or its file.
        rows: The split to score.
        pad_id: Number of the padding token.
        batch_size: Rows per batch.
        on_step: Told after each batch.

    Returns:
        Logits (rows, labels), float32, in the order of the rows.
    """
    run = runner(graph, device=torch.device("cpu"), threads=torch.get_num_threads())
    batches = scoring_batches(rows, batch_size=batch_size)
    parts = []
    for number, numbers in enumerate(batches):
        parts.append(run(collate(rows, numbers, pad_id=pad_id, device="cpu")))
        if on_step is not None:
            on_step(number + 1, len(batches))
    logits = torch.cat(parts).float()
    result = torch.empty_like(logits)
    result[torch.tensor([row for numbers in batches for row in numbers])] = logits
    return result


def _fp32(model: PreTrainedModel, rows: Encoded, pad_id: int, batch_size: int, on_step: OnStep | None) -> Tensor:
    return score(model, rows, pad_id=pad_id, batch_size=batch_size, precision="fp32", on_step=on_step)


def _bf16(model: PreTrainedModel, rows: Encoded, pad_id: int, batch_size: int, on_step: OnStep | None) -> Tensor:
    return _fp32(in_bf16(model), rows, pad_id, batch_size, on_step)


def _int8(model: PreTrainedModel, rows: Encoded, pad_id: int, batch_size: int, on_step: OnStep | None) -> Tensor:
    graph = quantised(to_onnx(model, inputs=inputs_of(model)))
    return graph_logits(graph, rows, pad_id=pad_id, batch_size=batch_size, on_step=on_step)


_Score = Callable[[PreTrainedModel, Encoded, int, int, OnStep | None], Tensor]
_SCORE: Mapping[str, _Score] = {"fp32": _fp32, "bf16": _bf16, "int8": _int8}

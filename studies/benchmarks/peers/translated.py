"""A peer's model as one of ours, so that all are trained, scored and measured by the same code.

FOLDER/model.safetensors ──widths of its matrices──► heads and neurons per layer ──► our class, the peer's weights
FOLDER/probe.safetensors ──logits of the peer's own model──► must agree with ours
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from search.bert.pruned import shape_of
from search.bert.surgery import Kept, cut

AGREE = 1e-4
"""Largest difference of the logits of both models."""


class MistranslatedError(Exception):
    """Our model does not answer as the peer's."""


def rebuilt(folder: Path, teacher: PreTrainedModel) -> PreTrainedModel:
    """The model that a peer handed over (`exchange.hand_over`).

    Args:
        folder: What it wrote.
        teacher: The dense classifier that it pruned; it is not changed.

    Raises:
        MistranslatedError: If it has other weights than a pruned classifier of ours, or other logits.
    """
    weights, probe = load_file(folder / "model.safetensors"), load_file(folder / "probe.safetensors")
    heads, neurons = counts(weights, teacher)
    small = cut(teacher, Kept(tuple(tuple(range(n)) for n in heads), tuple(tuple(range(n)) for n in neurons)))
    try:
        small.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise MistranslatedError(
            f"its weights are not those of a pruned BERT: {' '.join(str(error).split())[:300]}"
        ) from None
    theirs = probe.pop("logits")
    with torch.no_grad():
        ours = small(**probe).logits
    difference = float((ours - theirs).abs().max())
    if not difference <= AGREE:
        raise MistranslatedError(
            f"the logits differ by {difference:.2g} from those of its own model; at most {AGREE:g} may"
        )
    return small


def counts(weights: dict[str, Tensor], teacher: PreTrainedModel) -> tuple[list[int], list[int]]:
    """Heads and neurons of each layer, by the shapes of a BERT's weights.

    Raises:
        MistranslatedError: If a layer has a part of a head.
    """
    shape, heads, neurons = shape_of(teacher), [], []
    for number in range(shape.layers):
        layer = f"bert.encoder.layer.{number}"
        channels = len(weights[f"{layer}.attention.self.query.weight"])
        if channels % shape.head_size:
            raise MistranslatedError(
                f"layer {number} has {channels} channels of attention: heads have {shape.head_size}"
            )
        heads.append(channels // shape.head_size)
        neurons.append(len(weights[f"{layer}.intermediate.dense.weight"]))
    return heads, neurons

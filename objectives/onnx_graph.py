"""How does a model become an ONNX graph, how is that quantised, and how is it run: the extra onnx.

    model ──► torch.export ──► ONNX, float32 ──► weights of the projections and the word table to 8 bits, once
                                                 activations to 8 bits while it runs, by their own range

Batch and length stay open. The 8-bit weights use 7 bits: so the sums of products stay within 16 bits on every CPU, and
what the graph computes does not depend on the machine that it was tried on.
"""

import inspect
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from objectives.measurement import MeasurementUnavailable

PACKAGES = ("onnxruntime", "onnx", "onnxscript")
"""What the extra onnx installs."""

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""What of ONNX Runtime runs a graph on a device."""

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""Names of the inputs of a graph that is shipped, each int64 of shape (batch, tokens)."""

Run = Callable[[Mapping[str, Tensor]], Tensor]
"""Runs one batch, by the names of the graph's inputs, of which token types may be left out: then all are 0. Gives its
logits (batch, labels) on the CPU."""


class _Logits(nn.Module):
    """A classifier whose output is the plain tensor of its logits (batch, labels), as exporters want it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return cast(Tensor, self.model(input_ids=input_ids, attention_mask=attention_mask, **types).logits)


def missing_package() -> str | None:
    """The first package of the extra onnx that is not installed, or None."""
    return next((name for name in PACKAGES if find_spec(name) is None), None)


def inputs_of(model: nn.Module) -> Sequence[str]:
    """Names of the inputs that a model is shipped with: token types only where it tells texts apart by them."""
    return INPUTS if "token_type_ids" in inspect.signature(model.forward).parameters else INPUTS[:2]


def to_onnx(model: nn.Module, *, inputs: Sequence[str] = INPUTS, tokens: int = 16) -> bytes:
    """Turn a classifier into an ONNX graph, with batch and length left open.

    Args:
        model: A transformers classifier in eval mode on its device. It is left as it is.
        inputs: Names of the inputs, the first two of `INPUTS` or all.
        tokens: Length of the example that it is traced with, at least 2.

    Returns:
        The graph with its weights, as the file of an ONNX model holds it. Its output is `logits`.
    """
    # A dimension of size 1 would be taken for a constant; any other size stands for all.
    # One tensor for each input: one that is given twice would be taken for one input.
    device = next(model.parameters()).device
    example = [torch.ones((2, max(2, tokens)), dtype=torch.long, device=device) for _ in inputs]
    if len(example) > 2:
        example[2].zero_()
    dimensions = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    with _quiet(), torch.inference_mode(False), torch.no_grad():
        program = torch.onnx.export(
            _Logits(model).eval(),
            tuple(example),
            input_names=list(inputs),
            output_names=["logits"],
            dynamic_shapes=dict.fromkeys(inputs, dimensions),
            dynamo=True,
            verbose=False,
        )
    return cast(bytes, cast(Any, program).model_proto.SerializeToString())


def quantised(graph: bytes) -> bytes:
    """Quantise a graph to 8 bits: weights now, each output channel by its own range, activations while it runs.

    Args:
        graph: What `to_onnx` gave.

    Returns:
        The graph with 8-bit matrices and word table; what is added and normalised stays float32.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder, _quiet():
        file = Path(folder) / "quantised.onnx"
        quantize_dynamic(
            onnx.load_from_string(graph), file, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8
        )
        return file.read_bytes()


def runner(graph: bytes | Path, *, device: torch.device, threads: int) -> Run:
    """Make a graph ready to run.

    Args:
        graph: The graph, or the file that holds it.
        device: What runs it.
        threads: CPU threads.

    Raises:
        MeasurementUnavailable: If ONNX Runtime cannot use the device: by itself it would run the graph on the CPU.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    source = graph if isinstance(graph, bytes) else str(graph)
    provider = PROVIDERS[device.type]
    place = {"device_id": device.index or 0} if device.type == "cuda" else {}
    session = onnxruntime.InferenceSession(source, options, providers=[(provider, place)])
    if session.get_providers()[0] != provider:
        raise MeasurementUnavailable(
            f"ONNX Runtime cannot use {device}: it did not load the {provider}, whose libraries (CUDA, cuDNN) are "
            "missing or of another version; install those that it names in its log, or use eager"
        )
    names = [known.name for known in session.get_inputs()]

    def run(batch: Mapping[str, Tensor]) -> Tensor:
        given = {name: batch[name] if name in batch else torch.zeros_like(batch[INPUTS[0]]) for name in names}
        (logits,) = session.run(None, {name: tensor.cpu().numpy() for name, tensor in given.items()})
        return torch.from_numpy(logits)

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what exporter and quantiser say about themselves: packages they would like, what they might do better."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", None)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

"""What runs a model while it is measured: a front found for one backend does not carry over to another.

    eager          torch as it is, operation by operation
    compile        torch.compile, one graph without breaks
    cuda_graphs    eager's kernels recorded once per shape of a batch and replayed; CUDA only
    onnxruntime    exported to ONNX, with batch and length left open, and run by ONNX Runtime (extra: onnx)
    onnxruntime_int8    the same, dynamically quantised to 8 bits; CPU only

Each prepares a model once, outside every timed region, and then runs any of the batches it was prepared for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from objectives.measurement import MeasurementUnavailable
from objectives.onnx_graph import INPUTS, PROVIDERS, missing_package, quantised, runner, to_onnx

Batch = Mapping[str, Tensor]
"""`input_ids` and `attention_mask`, each of shape (batch, tokens), on the model's device."""

Forward = Callable[[Batch], Tensor]
"""Runs one batch. Gives its logits (batch, labels), which may be overwritten by the next run."""


class Prepare(Protocol):
    """Makes a model ready for some batches."""

    def __call__(self, model: nn.Module, batches: Sequence[Batch], *, threads: int) -> Forward:
        """Prepare a model.

        Args:
            model: A transformers classifier in eval mode on its device. It is left as it is.
            batches: The batches that it will run, at least one.
            threads: CPU threads.

        Returns:
            What runs one of these batches.
        """


@dataclass(frozen=True)
class Backend:
    """A way to run a model.

    Attributes:
        title: How sources of measurements name it.
        prepare: Makes a model ready.
        missing: Says why it cannot be used on a device and what to do; None where it can.
    """

    title: str
    prepare: Prepare
    missing: Callable[[torch.device], str | None]


def open_backend(name: str, device: torch.device) -> Backend:
    """Find a backend that works on a device.

    Args:
        name: Its name.
        device: The device that models run on.

    Returns:
        The backend.

    Raises:
        MeasurementUnavailable: If it cannot be used on that device, or a package is missing.
        ValueError: If there is no backend of that name.
    """
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; choose one of {', '.join(BACKENDS)}")
    backend = BACKENDS[name]
    if (reason := backend.missing(device)) is not None:
        raise MeasurementUnavailable(f"the backend {name!r} {reason}")
    return backend


def _never(_: torch.device) -> None:
    """Nothing is missing on any device."""


def _eager(model: nn.Module, batches: Sequence[Batch], *, threads: int) -> Forward:  # noqa: ARG001 # by protocol
    return lambda batch: cast(Tensor, model(**batch).logits)


def _compiled(model: nn.Module, batches: Sequence[Batch], *, threads: int) -> Forward:  # noqa: ARG001
    def logits(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return cast(Tensor, model(input_ids=input_ids, attention_mask=attention_mask).logits)

    # torch keeps what it compiled by code object and, after eight models behind one, would run the others in eager mode
    # without a word: so each model has a code object of its own, and a graph that breaks is an error.
    own = FunctionType(logits.__code__.replace(), logits.__globals__, "logits", None, logits.__closure__)
    compiled = torch.compile(own, fullgraph=True, dynamic=len({_shape(batch) for batch in batches}) > 1)
    for batch in batches:
        compiled(**batch)
    return lambda batch: cast(Tensor, compiled(**batch))


def _cuda_graphs(model: nn.Module, batches: Sequence[Batch], *, threads: int) -> Forward:  # noqa: ARG001
    graphs = {_shape(batch): _Recorded(model, batch) for batch in batches}
    return lambda batch: graphs[_shape(batch)](batch)


class _Recorded:
    """The kernels of one batch, recorded; a run copies the batch to where they read it and replays them."""

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        self._inputs = {name: tensor.clone() for name, tensor in batch.items()}
        self._device = batch["input_ids"].device
        with torch.cuda.device(self._device):  # streams and graphs are those of the current device
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # kernels choose their algorithms outside the recording
                for _ in range(3):
                    model(**self._inputs)
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=stream):
                self._logits = cast(Tensor, model(**self._inputs).logits)

    def __call__(self, batch: Batch) -> Tensor:
        with torch.cuda.device(self._device):
            for name, tensor in self._inputs.items():
                tensor.copy_(batch[name])
            self._graph.replay()
        return self._logits


def _not_cuda(device: torch.device) -> str | None:
    return None if device.type == "cuda" else f"needs a CUDA device, and the models run on {device}: use eager"


def _onnxruntime(model: nn.Module, batches: Sequence[Batch], *, threads: int) -> Forward:
    return runner(_graph(model, batches), device=batches[0]["input_ids"].device, threads=threads)


def _onnxruntime_int8(model: nn.Module, batches: Sequence[Batch], *, threads: int) -> Forward:
    return runner(quantised(_graph(model, batches)), device=batches[0]["input_ids"].device, threads=threads)


def _graph(model: nn.Module, batches: Sequence[Batch]) -> bytes:
    return to_onnx(model, inputs=INPUTS[:2], tokens=max(batch["input_ids"].shape[1] for batch in batches))


def _no_onnx(device: torch.device) -> str | None:
    if (package := missing_package()) is not None:
        return f'needs the package {package}: install the extra, pip install "paretobert[onnx]"'
    import onnxruntime

    provider = PROVIDERS.get(device.type)
    if provider not in onnxruntime.get_available_providers():
        return (
            f"has no execution provider for {device.type} here (it has "
            f"{', '.join(onnxruntime.get_available_providers())}): install onnxruntime-gpu for CUDA, or use eager"
        )
    return None


def _not_cpu(device: torch.device) -> str | None:
    return _no_onnx(device) if device.type == "cpu" else f"runs on the CPU, and the models run on {device}: use eager"


def _shape(batch: Batch) -> tuple[int, ...]:
    return tuple(batch["input_ids"].shape)


BACKENDS: Mapping[str, Backend] = {
    "eager": Backend("eager torch", _eager, _never),
    "compile": Backend("torch.compile", _compiled, _never),
    "cuda_graphs": Backend("CUDA graphs", _cuda_graphs, _not_cuda),
    "onnxruntime": Backend("ONNX Runtime", _onnxruntime, _no_onnx),
    "onnxruntime_int8": Backend("ONNX Runtime, dynamic int8", _onnxruntime_int8, _not_cpu),
}
"""The backends by name."""

"""How much memory does a model need: bytes of the stored file, and of one inference above what the model itself takes.

bytes │            ┌──┐
│     ┌──┐ ┌─┘  └┐        peak: highest sum of everything that one batch has at once
│  ┌──┘  └─┘     └──┐
idle ┼──┴────────────────┴──   weights and inputs, which are there before and after
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from objectives.inference import Conditions, Run, device_of, modes, prepare
from objectives.measurement import Measurement
from objectives.objective import Direction, Subject

_SAFETENSORS_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class StoredBytes:
    """Bytes of the model's file `model.safetensors`, with its header."""

    name: ClassVar[str] = "stored_bytes"
    unit: ClassVar[str] = "bytes"
    direction: ClassVar[Direction] = "minimize"
    needs_scores: ClassVar[bool] = False

    def measure(self, subject: Subject) -> Measurement:
        """Compute the size of the file that transformers would write; nothing is written.

        Raises:
            TypeError: If a tensor is of a type that safetensors files do not have.
        """
        return Measurement(float(safetensors_bytes(subject.model.state_dict())), self.unit, "closed form")


def safetensors_bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    """Size of a safetensors file with these tensors and the metadata that transformers writes.

    The file is 8 bytes of length, a JSON header that names type, shape and place of each tensor, spaces up to a
    multiple of 8, and the tensors.

    Args:
        tensors: The tensors by name; none shares its memory with another.

    Returns:
        Bytes.

    Raises:
        TypeError: If a tensor is of a type that safetensors files do not have.

    Reference:
        The format's description in the documentation of safetensors.
    """
    unknown = [name for name, tensor in tensors.items() if tensor.dtype not in _SAFETENSORS_TYPES]
    if unknown:
        raise TypeError(f"{unknown[0]} is {tensors[unknown[0]].dtype}, which a safetensors file cannot hold")
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    # Wide types first, then by name: the order decides how many digits the places have.
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _SAFETENSORS_TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-text // 8) * 8 + end


@dataclass(frozen=True)
class PeakMemory:
    """Highest number of bytes that one batch has at once, above the weights and the inputs.

    On CUDA it is what torch's allocator counts, scratch memory of kernels included. Elsewhere it is the sum of all
    tensors that live at once, operation by operation: the same on every machine, without what a kernel takes and gives
    back within one operation, and without what the C library keeps. The resident set of a process would hold that, and
    with it allocators' habits, pages of other libraries and the noise of the machine: models that differ by a head
    could not be told apart by it. The model is run by eager torch in the number type of the conditions; of a mix of
    lengths the largest batch counts.

    Attributes:
        conditions: Batch, tokens, threads and number type.
    """

    conditions: Conditions
    name: ClassVar[str] = "peak_memory_bytes"
    unit: ClassVar[str] = "bytes"
    direction: ClassVar[Direction] = "minimize"
    needs_scores: ClassVar[bool] = False

    def measure(self, subject: Subject) -> Measurement:
        """Run every batch once to warm up, and once under watch.

        Returns:
            Bytes of the batch that needs most; the source says who counted.

        Raises:
            ValueError: If the model has fewer positions than the conditions have tokens.
        """
        eager = replace(self.conditions, backend="eager")
        with modes(subject.model, eager):
            runs = prepare(subject.model, eager)
            for run in runs:
                run()
            on_cuda = device_of(subject.model).type == "cuda"
            peak = max(_cuda_peak(run, device_of(subject.model)) if on_cuda else _live_peak(run) for run in runs)
        return Measurement(
            float(peak),
            self.unit,
            "torch's CUDA allocator" if on_cuda else "live tensors of eager torch",
            conditions={"batch": eager.batch, "tokens": eager.tokens, "dtype": eager.dtype, "backend": "eager"},
        )


def _cuda_peak(run: Run, device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    idle = torch.cuda.memory_allocated(device)
    run()
    return int(torch.cuda.max_memory_allocated(device) - idle)


def _live_peak(run: Run) -> int:
    live = _LiveTensors()
    with live:
        run()
    return live.peak


class _LiveTensors(TorchDispatchMode):
    """Watches which memory the results of operations hold, for as long as it is entered.

    Attributes:
        peak: Highest sum of bytes after any operation.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self._there: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and add up what lives after it."""
        # An argument that is no operation's result was there before: weights and inputs, whose views are no new memory.
        self._forget()
        self._there |= {key: ref for key, ref, _ in _storages((args, kwargs or {})) if key not in self._live}
        result = func(*args, **(kwargs or {}))
        self._forget()
        for key, reference, size in _storages(result):
            if key not in self._there:
                self._live[key] = (reference, size)
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return result

    def _forget(self) -> None:
        """Leave out what has been freed; another piece of memory may come to lie in its place."""
        self._live = {key: entry for key, entry in self._live.items() if not _is_gone(entry[0])}
        self._there = {key: reference for key, reference in self._there.items() if not _is_gone(reference)}


def _is_gone(reference: StorageWeakRef) -> bool:
    return bool(reference.expired())  # type: ignore[no-untyped-call]


def _storages(values: Any) -> list[tuple[int, StorageWeakRef, int]]:
    """Name, reference and bytes of the memory of every tensor in nested values."""
    storages = [value.untyped_storage() for value in tree_iter(values) if isinstance(value, torch.Tensor)]
    return [(s._cdata, StorageWeakRef(s), s.nbytes()) for s in storages]  # type: ignore[no-untyped-call]

"""How is a model run while it is measured: the same batches again and again, and everything put back afterwards.

enter: eval mode, threads set, backend prepared ──► run() ... run() ──► leave: modes and threads as before
                                                     │
                                                     └─ forward, then wait for the device: the work is done then
"""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from objectives import parts
from objectives.backends import BACKENDS, Forward, open_backend
from objectives.measurement import MeasurementUnavailable

Run = Callable[[], None]
"""Runs one batch, and returns when the device has finished it."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The number types that a model can be measured in, by name."""

MIX_BATCHES = 8
"""Batches that stand for a mix of lengths."""


@dataclass(frozen=True)
class Conditions:
    """How a model is run while its latency or its energy is measured.

    Attributes:
        batch: Sequences per batch, at least 1.
        tokens: Tokens per sequence, special tokens included, at least 1; of a mix the mean, rounded.
        threads: CPU threads, at least 1; None takes as many as torch has now.
        warmup: Batches that run before measuring starts.
        repeats: Observations of a latency, at least: 3, so that there are quartiles.
        lengths: Lengths of sequences that stand for a mix; empty runs all sequences at `tokens`, without padding.
        dtype: Number type that the model is run in: `float32`, `bfloat16` or `float16`.
        backend: What runs it, one of `objectives.backends.BACKENDS`.
        interval: Observations go on until the 95 % confidence interval of the median is at most this share of the
            median wide, above 0; None stops at `repeats`.
        limit_s: Seconds of running after which observations end all the same, once there are `repeats`.

    Raises:
        ValueError: If a number is out of its range or a name is unknown; all of them are named.
    """

    batch: int
    tokens: int
    threads: int | None
    warmup: int
    repeats: int
    lengths: tuple[int, ...] = ()
    dtype: str = "float32"
    backend: str = "eager"
    interval: float | None = None
    limit_s: float = 2.0

    def __post_init__(self) -> None:
        least = {"batch": 1, "tokens": 1, "threads": 1, "warmup": 0, "repeats": 3, "limit_s": 0}
        given = {name: getattr(self, name) for name in least}
        wrong = [
            f"{name} is {number}: it must be at least {least[name]}"
            for name, number in given.items()
            if number is not None and not number >= least[name]
        ]
        if self.lengths and min(self.lengths) < 1:
            wrong.append(f"lengths hold {min(self.lengths)}: each must be at least 1")
        if self.interval is not None and not self.interval > 0:
            wrong.append(f"interval is {self.interval}: it must be above 0")
        if self.dtype not in DTYPES:
            wrong.append(f"dtype is {self.dtype!r}: choose one of {', '.join(DTYPES)}")
        if self.backend not in BACKENDS:
            wrong.append(f"backend is {self.backend!r}: choose one of {', '.join(BACKENDS)}")
        if wrong:
            raise ValueError("; ".join(wrong))


@contextmanager
def ready(model: nn.Module, conditions: Conditions, forward: Forward | None = None) -> Iterator[Sequence[Run]]:
    """Make a model ready to be measured, and put its modes and torch's threads back afterwards.

    Args:
        model: A transformers classifier on its device.
        conditions: Batch, tokens, threads, number type and backend.
        forward: What runs the model under this backend, where it has been prepared already.

    Yields:
        What runs each of the batches: one, or `MIX_BATCHES` for a mix of lengths.

    Raises:
        MeasurementUnavailable: If the backend cannot run the model.
        ValueError: If the model has fewer positions than the conditions have tokens.
    """
    with modes(model, conditions):
        yield prepare(model, conditions, forward)


@contextmanager
def modes(model: nn.Module, conditions: Conditions) -> Iterator[None]:
    """Have a model in eval mode, torch in inference mode and on the threads asked for, and put all back afterwards."""
    before = [(module, module.training) for module in model.modules()]
    threads = torch.get_num_threads()
    try:
        if conditions.threads is not None:
            torch.set_num_threads(conditions.threads)
        model.eval()
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads)
        for module, training in before:
            module.training = training


def prepare(model: nn.Module, conditions: Conditions, forward: Forward | None = None) -> list[Run]:
    """Prepare the backend for a model, inside its `modes`; what it gives may be run inside `modes` again and again.

    Raises:
        MeasurementUnavailable: If the backend cannot run the model.
        ValueError: If the model has fewer positions than the conditions have tokens.
    """
    batches = random_batches(model, conditions)
    device, dtype = device_of(model), DTYPES[conditions.dtype]
    backend = open_backend(conditions.backend, device)
    try:
        if forward is None:
            cast = model if next(model.parameters()).dtype == dtype else copy.deepcopy(model).to(dtype)
            forward = backend.prepare(cast, batches, threads=torch.get_num_threads())
    except (MeasurementUnavailable, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # of compilers and exporters, which have no common one
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise MeasurementUnavailable(f"the backend {conditions.backend!r} cannot run this model ({reason})") from error

    return [_run_of(forward, batch, device) for batch in batches]


def _run_of(forward: Forward, batch: dict[str, torch.Tensor], device: torch.device) -> Run:
    def run() -> None:
        forward(batch)
        synchronise(device)

    return run


def random_batches(model: nn.Module, conditions: Conditions) -> list[dict[str, torch.Tensor]]:
    """Draw batches of token ids, always the same; torch's own random state is left alone.

    A mix of lengths is stood for by `MIX_BATCHES` batches whose sequences have evenly spaced quantiles of the lengths,
    shuffled. Each batch is padded to its longest sequence, as it would be where it is served.

    Args:
        model: A transformers classifier on its device.
        conditions: Batch and tokens, or lengths.

    Returns:
        Batches of `input_ids` and `attention_mask`, each of shape (batch, tokens), on the model's device.

    Raises:
        ValueError: If the model has fewer positions than the conditions have tokens.
    """
    config = parts.config(model)
    lengths = _lengths(conditions)
    longest = max(max(batch) for batch in lengths)
    if longest > (most := parts.longest(model)):
        raise ValueError(
            f"tokens is {longest}, and the model has {most} positions: measure with at most as many tokens"
        )
    generator, device = torch.Generator().manual_seed(0), device_of(model)
    batches = []
    for batch in lengths:
        shape = (len(batch), max(batch))
        ids = torch.randint(config.vocab_size, shape, generator=generator)
        mask = (torch.arange(shape[1]) < torch.tensor(batch)[:, None]).long()
        batches.append({"input_ids": ids.to(device), "attention_mask": mask.to(device)})
    return batches


def _lengths(conditions: Conditions) -> list[tuple[int, ...]]:
    """Length of each sequence of each batch."""
    if not conditions.lengths:
        return [(conditions.tokens,) * conditions.batch]
    ordered, count = sorted(conditions.lengths), MIX_BATCHES * conditions.batch
    picked = [ordered[(2 * number + 1) * len(ordered) // (2 * count)] for number in range(count)]
    random.Random(0).shuffle(picked)
    return [tuple(picked[at : at + conditions.batch]) for at in range(0, count, conditions.batch)]


def device_of(model: nn.Module) -> torch.device:
    """The device that a model's parameters lie on."""
    return next(model.parameters()).device


def synchronise(device: torch.device) -> None:
    """Wait until a device has finished its queue; a CPU has none."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()

"""How is a model run while it is measured: the same batch again and again, and everything put back afterwards.

enter: eval mode, threads set ──► run_batch() ... run_batch() ──► leave: modes and threads as before
                                    │
                                    └─ forward, then wait for the device: the work is done when it returns
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from objectives import parts


@dataclass(frozen=True)
class Conditions:
    """How a model is run while its latency or its energy is measured.

    Attributes:
        batch: Sequences per batch, at least 1.
        tokens: Tokens per sequence, special tokens included, at least 1. There is no padding.
        threads: CPU threads, at least 1; None takes as many as torch has now.
        warmup: Batches that run before measuring starts.
        repeats: Batches timed, at least 3, so that there are quartiles.

    Raises:
        ValueError: If a number is out of its range; all of them are named.
    """

    batch: int
    tokens: int
    threads: int | None
    warmup: int
    repeats: int

    def __post_init__(self) -> None:
        least = {"batch": 1, "tokens": 1, "threads": 1, "warmup": 0, "repeats": 3}
        given = {name: getattr(self, name) for name in least}
        wrong = [
            f"{name} is {number}: it must be at least {least[name]}"
            for name, number in given.items()
            if number is not None and number < least[name]
        ]
        if wrong:
            raise ValueError("; ".join(wrong))


@contextmanager
def ready(model: nn.Module, conditions: Conditions) -> Iterator[Callable[[], None]]:
    """Make a model ready to be measured, and put its modes and torch's threads back afterwards.

    Args:
        model: A transformers classifier on its device.
        conditions: Batch, tokens and threads.

    Yields:
        A function that runs one batch and returns when the device has finished it.

    Raises:
        ValueError: If the model has fewer positions than the conditions have tokens.
    """
    batch = random_batch(model, conditions)
    device = device_of(model)

    def run_batch() -> None:
        model(**batch)
        synchronise(device)

    modes = [(module, module.training) for module in model.modules()]
    threads = torch.get_num_threads()
    try:
        if conditions.threads is not None:
            torch.set_num_threads(conditions.threads)
        model.eval()
        with torch.inference_mode():
            yield run_batch
    finally:
        torch.set_num_threads(threads)
        for module, training in modes:
            module.training = training


def random_batch(model: nn.Module, conditions: Conditions) -> dict[str, torch.Tensor]:
    """Draw a batch of token ids, always the same one; torch's own random state is left alone.

    Args:
        model: A transformers classifier on its device.
        conditions: Batch and tokens.

    Returns:
        `input_ids` and `attention_mask`, each of shape (batch, tokens), on the model's device; the mask is full.

    Raises:
        ValueError: If the model has fewer positions than the conditions have tokens.
    """
    config = parts.config(model)
    if conditions.tokens > config.max_position_embeddings:
        raise ValueError(
            f"tokens is {conditions.tokens}, and the model has {config.max_position_embeddings} positions: "
            "measure with at most as many tokens"
        )
    shape = (conditions.batch, conditions.tokens)
    ids = torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    device = device_of(model)
    return {"input_ids": ids.to(device), "attention_mask": torch.ones(shape, dtype=torch.long, device=device)}


def device_of(model: nn.Module) -> torch.device:
    """The device that a model's parameters lie on."""
    return next(model.parameters()).device


def synchronise(device: torch.device) -> None:
    """Wait until a device has finished its queue; a CPU has none."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()

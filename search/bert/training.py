"""One training loop, for the dense teacher and for the recovery of a cut model.

    learning rate
      peak ┐    ╱╲
           │  ╱    ╲            linear warm-up, then linear decay to zero
         0 ┘╱        ╲___ step

AdamW with decoupled weight decay on the matrices only, gradient norm clipped at 1, batches bucketed by length.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from search.bert.encoding import Encoded, collate, scoring_batches, training_batches
from search.errors import TrialError

Loss = Callable[[Tensor, Tensor, list[int]], Tensor]
"""From logits (batch, labels), labels (batch,) and the rows' numbers in the training split to a scalar loss."""

OnStep = Callable[[int, int], None]
"""Told after each step: steps done, steps in all."""

CHECK_EVERY = 10
"""Steps between two looks at the loss: each look waits for the device."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        steps: Optimizer steps.
        batch_size: Sentences per step.
        learning_rate: Peak learning rate.
        warmup: Share of the steps in which the learning rate rises.
        weight_decay: Decoupled weight decay of the matrices.
        precision: `auto`, `fp32` or `bf16`.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup: float
    weight_decay: float
    precision: str = "auto"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Autocast to bfloat16 where asked for, or under `auto` where the device computes in it; else nothing."""
    if precision == "bf16" or (precision == "auto" and has_bf16(device)):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def has_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16: GPUs from Ampere on, CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def rate(step: int, *, steps: int, warmup: float) -> float:
    """Learning rate of a step as a share of its peak.

    Args:
        step: Number of the step, from 0.
        steps: Steps in all.
        warmup: Share of the steps in which the rate rises.

    Returns:
        A number above 0 and at most 1.

    Example:
        >>> [rate(step, steps=6, warmup=1 / 3) for step in range(6)]
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    rising = round(steps * warmup)
    if step < rising:
        return (step + 1) / rising
    return (steps - step) / (steps - rising)


def train(
    model: nn.Module,
    rows: Encoded,
    loss: Loss,
    schedule: Schedule,
    *,
    pad_id: int,
    seed: int,
    on_step: OnStep,
    is_enough: Callable[[int], bool] | None = None,
) -> None:
    """Train a model in place, on the device it is on; it is left in eval mode.

    Args:
        model: A classifier that maps a batch to an output with `logits` (batch, labels).
        rows: The training split.
        loss: The loss of a batch.
        schedule: How long and how fast.
        pad_id: Number of the padding token.
        seed: Seed of the batches' order and of dropout. The global random state is left as it was.
        on_step: Told after each step.
        is_enough: Asked after each step but the last, with the number of steps done, whether to stop there.

    Raises:
        TrialError: If the loss stops being a finite number.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(parameter_groups(model, schedule.weight_decay), lr=schedule.learning_rate, fused=True)
    batches = training_batches(rows, batch_size=schedule.batch_size, seed=seed)
    model.train()
    with _seeded(device, seed):
        for step in range(schedule.steps):
            for group in optimizer.param_groups:
                group["lr"] = schedule.learning_rate * rate(step, steps=schedule.steps, warmup=schedule.warmup)
            value = _step(model, optimizer, rows, next(batches), loss, schedule, device, pad_id)
            last = step + 1 == schedule.steps
            if (last or step % CHECK_EVERY == 0) and not torch.isfinite(value):
                raise TrialError(
                    f"the loss became {value.item()} at step {step + 1} of {schedule.steps}; lower the learning rate "
                    f"(now {schedule.learning_rate:g})"
                )
            on_step(step + 1, schedule.steps)
            if is_enough is not None and not last and is_enough(step + 1):
                break
    model.eval()


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rows: Encoded,
    numbers: list[int],
    loss: Loss,
    schedule: Schedule,
    device: torch.device,
    pad_id: int,
) -> Tensor:
    """One optimizer step on one batch; returns the detached loss."""
    batch = collate(rows, numbers, pad_id=pad_id, device=device)
    labels = batch.pop("labels")
    with autocast(device, schedule.precision):
        logits = model(**batch).logits
    value = loss(logits.float(), labels, numbers)
    optimizer.zero_grad(set_to_none=True)
    value.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return value.detach()


def score(
    model: nn.Module, rows: Encoded, *, pad_id: int, batch_size: int, precision: str, on_step: OnStep | None = None
) -> Tensor:
    """Logits of every row, in the order of the rows.

    Args:
        model: A classifier in eval mode.
        rows: The split to score.
        pad_id: Number of the padding token.
        batch_size: Rows per batch.
        precision: `auto`, `fp32` or `bf16`.
        on_step: Told after each batch.

    Returns:
        Logits (rows, labels), float32, on the CPU.
    """
    device = next(model.parameters()).device
    batches = scoring_batches(rows, batch_size=batch_size)
    parts = []
    with torch.inference_mode(), autocast(device, precision):
        for number, numbers in enumerate(batches):
            batch = collate(rows, numbers, pad_id=pad_id, device=device)
            del batch["labels"]
            parts.append(model(**batch).logits.float())
            if on_step is not None:
                on_step(number + 1, len(batches))
    order = torch.tensor([row for numbers in batches for row in numbers])
    logits = torch.cat(parts).cpu()
    result = torch.empty_like(logits)
    result[order] = logits
    return result


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices with weight decay; biases and LayerNorm, which have one dimension, without."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's generators for the block, and put their states back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield

"""The state of a training that was interrupted: weights and AdamW's two moments, in one safetensors file.

The file appears in one step, after it is on the disk; one that cannot be read is as good as none. What is not trained
is not in it.
"""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.optim import AdamW

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's names of its two moments of each parameter."""


def save_state(file: Path, model: nn.Module, optimizer: AdamW, *, steps: int, seconds: float) -> None:
    """Keep the state of a training, in place of an earlier one.

    Args:
        file: Where to.
        model: The model; parameters that need no gradient are left out.
        optimizer: Its optimizer, after at least one step.
        steps: Steps done.
        seconds: Seconds that they took.

    Raises:
        OSError: If it cannot be written; an earlier state stays.
        safetensors.SafetensorError: Likewise.
    """
    tensors = {}
    for name, parameter in _trained(model).items():
        tensors[f"weight.{name}"] = parameter.detach()
        for moment in MOMENTS:
            tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
    new = file.with_name(file.name + ".new")
    try:
        save_file(tensors, new, metadata={"steps": str(steps), "seconds": repr(seconds)})
        with new.open("rb") as stream:
            os.fsync(stream.fileno())
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)


@torch.no_grad()
def load_state(file: Path, model: nn.Module, optimizer: AdamW) -> tuple[int, float]:
    """Go back to the state that was kept, where there is one.

    Args:
        file: What `save_state` wrote, of the same training.
        model: The model; its parameters are overwritten.
        optimizer: Its optimizer, new.

    Returns:
        Steps done, and seconds that they took; 0 and 0.0, with nothing changed, where no whole state is there.
    """
    trained = _trained(model)
    names = {f"{kind}.{name}" for name in trained for kind in ("weight", *MOMENTS)}
    try:
        with safe_open(file, framework="pt") as opened:
            about = opened.metadata() or {}
            steps, seconds = int(about["steps"]), float(about["seconds"])
            tensors = {name: opened.get_tensor(name) for name in names}
    except (OSError, SafetensorError, KeyError, ValueError):
        return 0, 0.0
    for name, parameter in trained.items():
        parameter.copy_(tensors[f"weight.{name}"])
        state = {moment: tensors[f"{moment}.{name}"].to(parameter.device) for moment in MOMENTS}
        optimizer.state[parameter] = {"step": torch.tensor(float(steps), device=parameter.device), **state}
    return steps, seconds


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

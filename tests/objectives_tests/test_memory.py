"""Bytes of a model's file and of an inference, against real files and sums by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from objectives import Conditions, Subject
from objectives.memory import PeakMemory, StoredBytes, safetensors_bytes
from search.plan import Plan, Shape

PLANS = [None, Plan((2, 1), (7, 16)), Plan((2, 0), (0, 7)), Plan((0, 0), (0, 0))]


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stored_bytes_are_those_of_the_real_file(
    plan: Plan | None, dtype: torch.dtype, build: Callable[..., Any], tmp_path: Path
) -> None:
    model = build(plan).to(dtype)
    model.save_pretrained(tmp_path)
    measured = StoredBytes().measure(Subject(model))
    assert measured.value == (tmp_path / "model.safetensors").stat().st_size
    assert (measured.unit, measured.source) == ("bytes", "closed form")


def test_mixed_types_and_odd_names_have_the_size_of_the_real_file(tmp_path: Path) -> None:
    tensors = {
        f'name "{number}" ä': torch.zeros(number, 3, dtype=dtype)
        for number, dtype in enumerate([torch.int64, torch.bool, torch.float16, torch.float32, torch.uint8] * 3)
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert safetensors_bytes(tensors) == (tmp_path / "model.safetensors").stat().st_size


def test_what_a_file_cannot_hold_is_refused() -> None:
    with pytest.raises(TypeError, match=r"a is torch\.complex64, which a safetensors file cannot hold"):
        safetensors_bytes({"a": torch.zeros(1, dtype=torch.complex64)})


class Steps(torch.nn.Module):
    """Allocates 400 and 800 kB, frees the first, allocates 600 kB, and views and changes some of it in place."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(100_000))
        self.config = type("Config", (), {"vocab_size": 9, "max_position_embeddings": 9})()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        a = self.weight + 1
        b = torch.cat([a, a])
        view = b.view(2, -1)
        view.add_(1)
        self.weight.view(2, -1)  # no memory of its own
        del a
        c = b[:150_000] * 2
        del b, view, input_ids, attention_mask
        return type("Output", (), {"logits": c})()


def test_the_peak_is_what_lives_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("objectives.parts.longest", lambda _model: 9)  # it has no table of positions
    conditions = Conditions(batch=1, tokens=1, threads=None, warmup=0, repeats=3)
    measured = PeakMemory(conditions).measure(Subject(Steps()))
    assert measured.value == 800_000 + 600_000
    assert (measured.unit, measured.source) == ("bytes", "live tensors of eager torch")


def test_it_grows_with_the_batch_and_falls_with_what_is_cut(build: Callable[..., Any]) -> None:
    shape = Shape(2, 3, 4, 12, 200, 50, 16, 2, 2)

    def peak(plan: Plan | None, batch: int) -> float:
        conditions = Conditions(batch=batch, tokens=16, threads=None, warmup=0, repeats=3)
        return PeakMemory(conditions).measure(Subject(build(plan, shape))).value

    assert 1.9 * peak(None, 4) < peak(None, 8) < 2.1 * peak(None, 4)
    # The feed-forward block holds most: batch · tokens · (2 · neurons for the activation + hidden) floats and a little.
    assert peak(None, 8) >= 4 * 8 * 16 * 2 * 200
    assert peak(Plan((3, 3), (100, 100)), 8) < 0.6 * peak(None, 8)
    assert peak(Plan((0, 0), (0, 0)), 8) < peak(Plan((3, 3), (20, 20)), 8)


def test_half_the_width_of_numbers_is_half_the_memory(build: Callable[..., Any]) -> None:
    model = build(shape=Shape(2, 3, 4, 12, 200, 50, 16, 2, 2))
    full, half = (
        PeakMemory(Conditions(8, 16, None, 0, 3, dtype=dtype)).measure(Subject(model)).value
        for dtype in ("float32", "bfloat16")
    )
    assert half == pytest.approx(full / 2, rel=0.1)


def test_on_cuda_the_allocator_is_asked(build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls and their order; the figures are the allocator's."""
    calls: list[str] = []
    model = build()
    monkeypatch.setattr("objectives.memory.device_of", lambda _: torch.device("cuda:0"))
    model.register_forward_hook(lambda *_: calls.append("forward"))
    for name, answer in (("synchronize", None), ("reset_peak_memory_stats", None), ("memory_allocated", 700)):
        monkeypatch.setattr(torch.cuda, name, lambda _, name=name, answer=answer: calls.append(name) or answer)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: calls.append("peak") or 1000)
    measured = PeakMemory(Conditions(1, 4, None, 0, 3)).measure(Subject(model))
    assert (measured.value, measured.source) == (300.0, "torch's CUDA allocator")
    assert calls == ["forward", "synchronize", "reset_peak_memory_stats", "memory_allocated", "forward", "peak"]

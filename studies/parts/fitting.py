"""What can a BERT-base of at most 25 M parameters keep, and what does it cost? Shapes only: the weights are random.

    rank of the word embeddings ─► the widest uniform plan within the budget ─► one of them is built, counted, measured

Time and energy do not depend on the weights; accuracy does, and nothing is said about it here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.harness import finish, say
from transformers import BertConfig, PreTrainedModel

from objectives import Conditions, Subject, built_in
from parts.claim import outcomes, reads_as, with_accuracy_and_f1
from parts.speeds import BATCHES, TOKENS, devices, label, speed_up
from search.bert.checkpoint import PrunedBertForSequenceClassification
from search.bert.surgery import Kept, cut, shape_of
from search.plan import Plan, Shape, encoder_parameters, total_parameters, word_parameters

BUDGET = 25_000_000
RANKS = (None, 256, 192, 128, 64, 32)
NEURON_BLOCK = 64

SST2_DEV = (444, 428)
"""Positive and negative rows of SST-2's dev set."""

COLA_DEV = (721, 322)
"""Acceptable and unacceptable rows of CoLA's dev set."""


def widest(shape: Shape, rank: int | None, budget: int) -> Plan | None:
    """The uniform plan with the largest encoder within a budget of parameters; None where not even the smallest fits.

    Uniform: every layer keeps the same share of heads and of neuron blocks, up to rounding of either.

    Args:
        shape: Sizes of the dense model.
        rank: Rank of the word embeddings; None leaves them one table.
        budget: Parameters in all.
    """
    blocks = shape.neurons // NEURON_BLOCK
    best: tuple[int, Plan] | None = None
    for kept in range(blocks, -1, -1):
        for heads in {shape.heads * kept // blocks, -(-shape.heads * kept // blocks)}:
            plan = Plan((heads,) * shape.layers, (kept * NEURON_BLOCK,) * shape.layers, rank)
            size = encoder_parameters(plan, shape)
            if total_parameters(plan, shape) <= budget and (best is None or size > best[0]):
                best = size, plan
    return None if best is None else best[1]


def plans(shape: Shape, ranks: Sequence[int | None], budget: int) -> list[dict[str, Any]]:
    """For each rank what fits into the budget."""
    whole = encoder_parameters(Plan.dense(shape), shape)
    found = []
    for rank in ranks:
        if rank is not None and word_parameters(rank, shape) >= word_parameters(None, shape):
            continue
        plan = widest(shape, rank, budget)
        if plan is None:
            found.append({"rank": rank, "why_not": f"embeddings and pooler alone are above {budget:,}"})
            continue
        encoder = encoder_parameters(plan, shape)
        found.append(
            {
                "rank": rank,
                "heads": plan.heads[0],
                "neurons": plan.neurons[0],
                "parameters": total_parameters(plan, shape),
                "encoder_parameters": encoder,
                "encoder_share": round(encoder / whole, 4),
            }
        )
    return found


def measured(model: PreTrainedModel, plan: Plan, device: torch.device, *, quick: bool) -> dict[str, Any]:
    """Build one plan from a dense model, count it, and measure time and energy beside the dense one."""
    shape = shape_of(model)
    kept = Kept(
        tuple(tuple(range(count)) for count in plan.heads),
        tuple(tuple(range(count)) for count in plan.neurons),
        plan.rank,
    )
    directions = torch.eye(shape.hidden)
    small = torch.nn.Module.to(cut(model, kept, directions=directions), device)
    torch.nn.Module.to(model, device)
    conditions = Conditions(batch=32, tokens=TOKENS, threads=None, warmup=1, repeats=3)
    energy = built_in(
        dense_encoder_parameters=encoder_parameters(Plan.dense(shape), shape),
        conditions=conditions,
        device=device,
        energy_source="auto",
        energy_window_s=2.0,
        picojoules_per_mac=4.6,
        picojoules_per_byte=162.5,
    )["energy_mj"]
    mine, whole = (energy.measure(Subject(each)) for each in (small, model))
    speeds = {label(device, batch): speed_up(small, model, batch, quick=quick) for batch in BATCHES[device.type]}
    return {
        "counted_parameters": sum(parameter.numel() for parameter in small.parameters()),
        "speed_up": speeds,
        "energy_mj": mine.value,
        "dense_energy_mj": whole.value,
        "energy_source": mine.source,
    }


def claims() -> dict[str, Any]:
    """What the published figures of one data set say about each other."""
    both = with_accuracy_and_f1(*SST2_DEV, accuracy=96.3, f1=95.2)
    right = [each for each in outcomes(*SST2_DEV) if reads_as(each.accuracy, 96.3, 1)]
    cola = [each for each in outcomes(*COLA_DEV) if reads_as(each.matthews, 56, 0)]
    as_f1 = [each for each in cola if reads_as(each.f1, 82.3, 1)]
    as_accuracy = [each for each in cola if reads_as(each.accuracy, 82.3, 1)]
    return {
        "sst2_outcomes_with_accuracy_96.3_and_f1_95.2": {name: len(found) for name, found in both.items()},
        "sst2_f1_at_accuracy_96.3": _ends([value for each in right for value in (each.f1, each.f1_of_negatives)]),
        "cola_outcomes_with_matthews_56_and_f1_82.3": len(as_f1),
        "cola_accuracy_if_82.3_is_f1": _ends([each.accuracy for each in as_f1]),
        "cola_outcomes_with_matthews_56_and_accuracy_82.3": len(as_accuracy),
        "cola_f1_if_82.3_is_accuracy": _ends([each.f1 for each in as_accuracy]),
    }


def _ends(values: Sequence[float]) -> list[float] | None:
    return [round(100 * min(values), 2), round(100 * max(values), 2)] if values else None


def shape_part(
    *, quick: bool, file: Path | None, config: BertConfig | None = None, budget: int = BUDGET, rank: int | None = 128
) -> None:
    """All of it: printed for people, and one line of JSON.

    Args:
        quick: Whether few observations are enough.
        file: JSON file to write as well.
        config: Sizes of the dense model; None takes those of BERT-base.
        budget: Parameters in all.
        rank: Rank of the word embeddings of the plan that is measured.
    """
    config = config or BertConfig()
    torch.manual_seed(0)
    model = PrunedBertForSequenceClassification(config).eval()
    shape = shape_of(model)
    found = plans(shape, RANKS, budget)
    for each in found:
        table = "one table" if each["rank"] is None else f"rank {each['rank']}"
        said = each.get("why_not") or (
            f"{each['heads']} heads and {each['neurons']} neurons per layer, {each['parameters'] / 1e6:.2f} M in all, "
            f"encoder {each['encoder_parameters'] / 1e6:.2f} M ({100 * each['encoder_share']:.1f} %)"
        )
        say(f"word embeddings {table}: {said}")
    result: dict[str, Any] = {"benchmark": "smarts2025-shape", "quick": quick, "budget": budget, "plans": found}
    plan = widest(shape, rank, budget)
    if plan is not None:
        result["measured_rank"] = rank
        result["measured"] = {}
        for device in devices():
            one = measured(model, plan, device, quick=quick)
            result["measured"][device.type] = one
            times = ", ".join(f"{name} {each['speed_up']:.2f} times" for name, each in one["speed_up"].items())
            saved = one["dense_energy_mj"] / one["energy_mj"]
            say(f"rank {rank}: speed-up {times}; energy ({one['energy_source']}) {saved:.2f} times less")
    result["claim"] = claims()
    for name, value in result["claim"].items():
        say(f"{name}: {value}")
    finish(result, file)

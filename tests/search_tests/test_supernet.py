"""The super-network: a slice is the cut model, gradients stay in the prefix, and what comes out is a dense model."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers import BertConfig

from search.bert import supernet
from search.bert.checkpoint import PrunedBertForSequenceClassification, load, save
from search.bert.choose import choose, ranking
from search.bert.encoding import Encoded, collate
from search.bert.importance import Scores
from search.bert.pruned import shape_of
from search.bert.refit import refit
from search.bert.supernet import draw_plan, plans_of_step, reorder, slice_logits, train_supernet
from search.bert.surgery import cut
from search.definition import Range, SpaceSettings, SupernetSettings
from search.errors import TrialError
from search.plan import Plan, Shape, encoder_parameters
from search.space import Space

LAYERS, HEADS, NEURONS = 3, 4, 12
SETTINGS = SupernetSettings(steps=6, batch_size=4, learning_rate=5e-3, smallest=0.25)
BERT_BASE = Shape(12, 12, 64, 768, 3072, 30522, 512, 2, 2)

plans = st.builds(
    Plan,
    heads=st.tuples(*[st.integers(0, HEADS)] * LAYERS),
    neurons=st.tuples(*[st.sampled_from([0, 0, 1, 5, 8, NEURONS])] * LAYERS),
)


def tiny() -> PrunedBertForSequenceClassification:
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=NEURONS,
        max_position_embeddings=12, num_labels=3, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PrunedBertForSequenceClassification(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # transformers starts biases at zero: an error in them would not show
                torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def scores_of(layers: int = LAYERS, heads: int = HEADS, neurons: int = NEURONS) -> Scores:
    dice = torch.Generator().manual_seed(3)
    return Scores(
        torch.rand(layers, heads, dtype=torch.float64, generator=dice),
        torch.rand(layers, neurons, dtype=torch.float64, generator=dice),
    )


SCORES = scores_of()
SPACE = Space.of(SpaceSettings(neuron_block=4), shape_of(tiny().config))


def rows(count: int = 40) -> Encoded:
    dice = torch.Generator().manual_seed(5)
    lengths = torch.randint(3, 10, (count,), generator=dice)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    ids = torch.randint(1, 40, (int(lengths.sum()),), generator=dice, dtype=torch.int32)
    return Encoded(ids, torch.zeros(len(ids), dtype=torch.uint8), offsets, torch.arange(count) % 3)


def batch() -> dict[str, torch.Tensor]:
    dice = torch.Generator().manual_seed(1)
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, 5:], mask[2, 3:] = 0, 0
    return {"input_ids": torch.randint(1, 40, (3, 7), generator=dice) * mask, "attention_mask": mask}


def order() -> dict[str, torch.Tensor]:
    return {"heads": ranking(SCORES.heads), "neurons": ranking(SCORES.neurons)}


def ignore(_done: int, _total: int) -> None:
    pass


def trained(given: SupernetSettings = SETTINGS, **options: Any) -> PrunedBertForSequenceClassification:
    model, data = tiny(), rows()
    dice = torch.Generator().manual_seed(7)
    options = {"precision": "fp32", "pad_id": 0, "seed": 0, "on_step": ignore, **options}
    train_supernet(model, data, 3 * torch.randn(len(data), 3, generator=dice), SCORES, SPACE, given, **options)
    return model


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


# --- slices


@settings(max_examples=40, deadline=None)
@given(plan=plans)
def test_a_slice_equals_the_cut_model(plan: Plan) -> None:
    model = tiny()
    sorted_model = copy.deepcopy(model)
    reorder(sorted_model, order())
    with torch.no_grad():
        found, expected = slice_logits(sorted_model, plan, batch()), cut(model, choose(plan, SCORES))(**batch()).logits
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)


def test_plans_differ_in_this_model() -> None:
    sizes = [Plan((h,) * LAYERS, (n,) * LAYERS) for h in range(HEADS + 1) for n in (0, 4, 8, 12)]
    with torch.no_grad():
        logits = torch.stack([slice_logits(tiny(), plan, batch()).flatten() for plan in sizes])
    assert torch.pdist(logits).min() > 1e-3


@settings(max_examples=20, deadline=None)
@given(plan=plans)
def test_gradients_reach_the_prefix_and_nothing_else(plan: Plan) -> None:
    model = tiny()
    slice_logits(model, plan, batch()).square().sum().backward()
    size = shape_of(model).head_size
    for number in range(LAYERS):
        layer: Any = model.bert.encoder.layer[number]
        attention, heads, neurons = layer.attention.self, size * plan.heads[number], plan.neurons[number]
        for weight, kept in (
            (attention.query.weight, heads),
            (attention.key.weight, heads),
            (attention.value.weight, heads),
            (attention.value.bias, heads),
            (layer.attention.output.dense.weight.T, heads),
            (layer.intermediate.dense.weight, neurons),
            (layer.intermediate.dense.bias, neurons),
            (layer.output.dense.weight.T, neurons),
        ):
            whole = weight if weight._base is None else weight._base
            if kept == 0:
                assert whole.grad is None
                continue
            grad = whole.grad if weight._base is None else whole.grad.T
            assert not grad[kept:].any()
            assert grad[:kept].reshape(kept, -1).abs().sum(dim=1).min() > 0
        assert layer.output.dense.bias.grad.any()


@settings(max_examples=10, deadline=None)
@given(plan=plans)
def test_a_slices_gradients_are_the_cut_models(plan: Plan) -> None:
    model = tiny()
    small = cut(model, choose(plan, SCORES))
    reorder(model, order())
    slice_logits(model, plan, batch()).square().sum().backward()
    small(**batch()).logits.square().sum().backward()
    for name, parameter in small.named_parameters():
        assert parameter.grad is not None
        expected, found = parameter.grad.norm(), model.get_parameter(name).grad.norm()  # the order does not matter
        # A key's bias shifts all scores of a query alike: its gradient is nothing but rounding, about 1e-6.
        assert torch.isclose(found, expected, rtol=1e-3, atol=1e-5), name


def test_order_is_undone() -> None:
    model = tiny()
    with torch.no_grad():
        before = model(**batch()).logits
        reorder(model, order())
        assert not equal(model, tiny())
        assert torch.allclose(model(**batch()).logits, before, atol=1e-5)
    reorder(model, {kind: ranked.argsort(dim=1) for kind, ranked in order().items()})
    assert equal(model, tiny())


# --- the plans that are trained


def test_each_step_trains_the_smallest_and_random_plans() -> None:
    given = SETTINGS.model_copy(update={"plans": 2})
    steps = [plans_of_step(SPACE, SCORES, given, seed=0, step=step) for step in range(20)]
    assert {step[0] for step in steps} == {Plan((1,) * LAYERS, (4,) * LAYERS)}
    assert {len(step) for step in steps} == {3}
    assert len({plan for step in steps for plan in step[1:]}) > 25
    assert steps[3] == plans_of_step(SPACE, SCORES, given, seed=0, step=3)
    assert steps[3] != plans_of_step(SPACE, SCORES, given, seed=1, step=3)


def test_the_smallest_plan_always_looks_at_the_sentence() -> None:
    given = SETTINGS.model_copy(update={"smallest": 0.05})
    assert plans_of_step(SPACE, SCORES, given, seed=0, step=0)[0] == Plan((0,) * (LAYERS - 1) + (1,), (0,) * LAYERS)


def test_each_halving_of_the_size_is_drawn_as_often() -> None:
    """Independent ratios per layer would give shares of 0.5 ± 0.07, and none below a quarter."""
    space, dice = Space.of(SpaceSettings(), BERT_BASE), np.random.default_rng(0)
    scores, dense = scores_of(12, 12, 3072), encoder_parameters(Plan.dense(BERT_BASE), BERT_BASE)
    drawn = [draw_plan(space, scores, smallest=0.125, dice=dice) for _ in range(300)]
    shares = np.array([encoder_parameters(plan, BERT_BASE) / dense for plan in drawn])
    counts, _ = np.histogram(shares, bins=[0.0, 0.25, 0.5, 1.0])
    assert counts.min() > 80
    assert shares.min() < 0.14
    assert shares.max() > 0.9
    assert any(len(set(plan.heads)) > 3 for plan in drawn)


def test_a_smallest_size_of_nothing_is_no_end_of_a_logarithm() -> None:
    given = SETTINGS.model_copy(update={"smallest": 0.0, "plans": 20})
    smallest, *drawn = plans_of_step(SPACE, SCORES, given, seed=0, step=0)
    assert smallest == Plan((0,) * (LAYERS - 1) + (1,), (0,) * LAYERS)
    assert len(set(drawn)) > 5


def test_plans_stay_in_the_space() -> None:
    space = Space.of(SpaceSettings(heads=Range(low=0.5, high=0.75), neuron_block=4), SPACE.shape)
    dice = np.random.default_rng(0)
    drawn = [draw_plan(space, SCORES, smallest=0.25, dice=dice) for _ in range(50)]
    assert {heads for plan in drawn for heads in plan.heads} == {2, 3}
    assert plans_of_step(space, SCORES, SETTINGS, seed=0, step=0)[0].heads == (2, 2, 2)


# --- training


def test_it_learns_all_sizes_and_stays_a_dense_checkpoint(tmp_path: Path) -> None:
    data, teacher, model = rows(), tiny(), tiny()
    inputs = {
        name: values for name, values in collate(data, range(40), pad_id=0, device="cpu").items() if name != "labels"
    }
    with torch.no_grad():
        wanted = teacher(**inputs).logits

    def divergence(source: PrunedBertForSequenceClassification, plan: Plan) -> float:
        """From the teacher, in nats per sentence."""
        with torch.no_grad():
            found = cut(source, choose(plan, SCORES))(**inputs).logits.log_softmax(-1)
        return float(functional.kl_div(found, wanted.log_softmax(-1), log_target=True, reduction="batchmean"))

    given = SupernetSettings(steps=40, batch_size=20, learning_rate=1e-3, smallest=0.25, distillation=1.0)
    train_supernet(model, data, wanted, SCORES, SPACE, given, precision="fp32", pad_id=0, seed=0, on_step=ignore)
    save(model, tmp_path)
    model = load(tmp_path)
    assert model.state_dict().keys() == teacher.state_dict().keys()
    half, smallest = Plan((2,) * LAYERS, (4,) * LAYERS), Plan((1,) * LAYERS, (4,) * LAYERS)
    assert divergence(model, half) < 0.25 * divergence(teacher, half)
    assert divergence(model, smallest) < 0.25 * divergence(teacher, smallest)
    assert divergence(model, Plan.dense(SPACE.shape)) < 0.01


def test_least_squares_brings_its_slices_nearer_to_the_teacher() -> None:
    teacher, kept = tiny(), choose(Plan((2,) * LAYERS, (4,) * LAYERS), SCORES)
    inputs = collate(rows(), range(40), pad_id=0, device="cpu")
    inputs.pop("labels")
    small = cut(trained(), kept)
    mended = copy.deepcopy(small)
    refit(mended, teacher, [inputs])
    with torch.no_grad():
        wanted = teacher(**inputs).logits
        assert (mended(**inputs).logits - wanted).norm() < (small(**inputs).logits - wanted).norm()


def test_what_is_not_trained_stays_and_the_rest_is_as_before() -> None:
    model = trained()
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, tiny().bert.embeddings.word_embeddings.weight)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not model.training
    assert not equal(model, tiny())


def test_same_seed_same_weights_and_the_global_random_state_is_not_touched() -> None:
    state = torch.random.get_rng_state()
    model = trained()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    assert equal(model, trained())
    assert not equal(model, trained(seed=1))
    torch.random.set_rng_state(state)


def test_a_loss_that_is_not_a_number_is_said() -> None:
    with pytest.raises(TrialError, match="the loss became nan at step 1 of 6"):
        trained(SETTINGS.model_copy(update={"temperature": float("nan")}))


# --- interruptions


def interrupted(file: Path, at: int) -> None:
    def stop(done: int, _total: int) -> None:
        if done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(state=file, on_step=stop)


def test_an_interrupted_training_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supernet, "SAVE_EVERY_S", 0.0)
    file, steps = tmp_path / "state.safetensors", []
    interrupted(file, 2)
    interrupted(file, 4)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    model = trained(state=file, on_step=lambda done, _total: steps.append(done))
    assert steps == [5, 6]
    assert equal(model, trained())


def test_a_block_that_no_plan_has_kept_yet_does_not_hinder_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights have had no gradient when the state is kept; their steps are counted all the same."""
    monkeypatch.setattr(supernet, "SAVE_EVERY_S", 0.0)
    real = supernet.plans_of_step

    def late(*given: Any, step: int, **others: Any) -> list[Plan]:
        bare = Plan((0, 1, 1), (4, 0, 4))
        return real(*given, step=step, **others) if step > 2 else [bare, bare]

    monkeypatch.setattr(supernet, "plans_of_step", late)
    file, steps = tmp_path / "state.safetensors", []
    interrupted(file, 2)
    model = trained(state=file, on_step=lambda done, _total: steps.append(done))
    assert steps == [3, 4, 5, 6]
    assert equal(model, trained())


@pytest.mark.parametrize("damage", ["torn", "empty", "a moment is missing", "no steps"])
def test_a_state_that_is_not_whole_is_not_trusted(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file, save_file

    monkeypatch.setattr(supernet, "SAVE_EVERY_S", 0.0)
    file, steps = tmp_path / "state.safetensors", []
    interrupted(file, 3)
    content = file.read_bytes()
    if damage in ("torn", "empty"):
        file.write_bytes(content[: len(content) // 2] if damage == "torn" else b"")
    else:
        tensors = load_file(file)
        if damage == "a moment is missing":
            tensors.popitem()
        save_file(tensors, file, metadata={"seconds": "1"} | ({} if damage == "no steps" else {"steps": "3"}))
    model = trained(state=file, on_step=lambda done, _total: steps.append(done))
    assert steps[0] == 1
    assert equal(model, trained())


def test_a_state_that_cannot_be_written_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supernet, "SAVE_EVERY_S", 0.0)
    file = tmp_path / "state.safetensors"
    interrupted(file, 3)
    before = file.read_bytes()
    (tmp_path / "state.safetensors.new").mkdir()
    with pytest.raises(Exception, match="directory"):
        trained(state=file)
    assert file.read_bytes() == before


def test_seconds_before_an_interruption_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supernet, "SAVE_EVERY_S", 0.0)
    file, data = tmp_path / "state.safetensors", rows()
    interrupted(file, 3)
    from safetensors.torch import load_file, save_file

    save_file(load_file(file), file, metadata={"seconds": "1000.0", "steps": "3"})
    seconds = train_supernet(
        tiny(), data, torch.zeros(len(data), 3), SCORES, SPACE, SETTINGS,
        precision="fp32", pad_id=0, seed=0, state=file, on_step=ignore,
    )  # fmt: skip
    assert 1000.0 < seconds < 1060.0

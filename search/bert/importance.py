"""How much each head and each neuron matters, so that the least important ones are cut first.

Fisher and Taylor ask what would happen if a unit were scaled down. Each unit u of each layer gets a factor m_u = 1 on
what it sends into the block's output projection, separately for every sentence i:

    attention:     context (tokens, heads*d) * m_u --> output projection
    feed-forward:  activation (tokens, neurons) * m_u --> output projection   loss_i --backward--> g_iu = dloss_i/dm_u

Because m multiplies the value a of the unit at every token, g_iu is also the sum over tokens of a * dloss_i/da.
The factors are put in by hooks: transformers 5 accepts `head_mask` and ignores it.

The loss is that of the sentence's label (`task`), or of the labels that the model itself would give (`distillation`).
Whole blocks are scored in `search.bert.block_importance`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, log_softmax
from transformers import PreTrainedModel

from search.bert.families import family_of, layers_of
from search.bert.pruned import plan_of, shape_of
from search.errors import UserError, unknown_name
from search.plan import Plan

Batch = Mapping[str, Tensor]
"""`input_ids`, `attention_mask` and perhaps `token_type_ids`, each (batch, tokens), and `labels` (batch,)."""

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""What of a batch goes into the model; other entries are passed over."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Importance of every head and neuron of a dense model; higher is kept longer.

    Scores of heads, of neurons and of blocks, and those of different methods, are not on one scale.

    Attributes:
        heads: Scores (layers, heads), float64 on the CPU.
        neurons: Scores (layers, neurons), float64 on the CPU.
        blocks: What the loss gains, in nats or squared labels, when a layer's attention block or its feed-forward block
            vanishes (layers, 2), float64 on the CPU; None where it was not measured.

    Raises:
        ValueError: If they are not such tensors of equally many layers, or a score is not finite.
    """

    heads: Tensor
    neurons: Tensor
    blocks: Tensor | None = None

    def __post_init__(self) -> None:
        for kind, scores in self.to_tensors().items():
            if scores.dim() != 2 or scores.dtype != torch.float64 or scores.device.type != "cpu":
                form = f"{tuple(scores.shape)} {scores.dtype} on {scores.device}"
                raise ValueError(f"scores of {kind} are {form}: they must be (layers, {kind}) float64 on the CPU")
            if not bool(scores.isfinite().all()):
                raise ValueError(f"a score of {kind} is not finite: the model's weights or its loss are not finite")
        if len(self.heads) != len(self.neurons):
            raise ValueError(f"scores of {len(self.heads)} and {len(self.neurons)} layers: both must be equal")
        if self.blocks is not None and self.blocks.shape != (len(self.heads), 2):
            raise ValueError(f"scores of blocks are {tuple(self.blocks.shape)}: they must be ({len(self.heads)}, 2)")

    def to_tensors(self) -> dict[str, Tensor]:
        """The scores by name, for a safetensors file; without those that were not measured."""
        named = {"heads": self.heads, "neurons": self.neurons}
        return named if self.blocks is None else {**named, "blocks": self.blocks}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The scores that `to_tensors` gave.

        Raises:
            ValueError: If `tensors` does not hold scores.
        """
        missing = {"heads", "neurons"} - tensors.keys()
        if missing:
            raise ValueError(f"tensors {sorted(tensors)} hold no scores: {sorted(missing)} missing")
        return cls(heads=tensors["heads"], neurons=tensors["neurons"], blocks=tensors.get("blocks"))


class Loss(Protocol):
    """The losses of a batch whose gradients are scored, each with the weight that its score has."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Weights (batch,), adding up to 1 for each sentence, and losses (batch,), one pair or several."""


def task(logits: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The cross-entropy of the sentences' labels: the empirical Fisher information. In a regression squared errors."""
    yield torch.ones_like(logits[:, 0]), losses_of(logits, labels)


def losses_of(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of each sentence's label (batch,): cross-entropy of a class, squared error of a number."""
    if labels.is_floating_point():
        return (logits[:, 0] - labels.to(logits.dtype)).square()
    return cross_entropy(logits, labels, reduction="none")


def distillation(logits: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:  # noqa: ARG001 # by protocol
    """The cross-entropy of each label that the model could give, weighted with the probability that it gives it.

    The gradient of the distillation loss KL(teacher ‖ model) is zero at the teacher itself, and so would be a score of
    it. What it gains when factors leave 1 begins with its curvature, ½·Δmᵀ·F·Δm, and F is the Fisher information under
    the teacher's own labels: F_uu = Σ_y p(y | sentence) · (d log p(y | sentence)/dm_u)². The sum over the labels is
    taken whole instead of drawing from it, which costs a backward pass for each label and has no noise.
    The temperature is 1.

    In a regression the distillation loss is (f(m) - f)², f the teacher's output. It begins with the square of
    Σ_u (df/dm_u)·Δm_u, so the output itself is what is differentiated: its squared gradient is that curvature.

    Reference:
        Martens 2020, "New Insights and Perspectives on the Natural Gradient Method": the Fisher information is the
        Hessian of the KL divergence. Kunstner, Balles, Hennig 2019, "Limitations of the Empirical Fisher Approximation
        for Natural Gradient Descent": how it differs from that of the data's labels.
    """
    if logits.shape[1] == 1:
        yield torch.ones_like(logits[:, 0]), logits[:, 0]
        return
    log_probabilities = log_softmax(logits, dim=-1)
    for label in range(logits.shape[1]):
        yield log_probabilities[:, label].detach().exp(), -log_probabilities[:, label]


LOSSES: dict[str, Loss] = {"task": task, "distillation": distillation}
"""The losses by name."""


class Method(Protocol):
    """A way to score a dense model. It leaves the model's weights, gradients, hooks and mode as they were."""

    def __call__(self, model: PreTrainedModel, batches: Iterable[Batch], *, seed: int, loss: Loss) -> Scores:
        """Score all heads and neurons of `model`: by `loss` on the sentences of `batches`, or by chance from `seed`."""


def importance(
    method: str, model: PreTrainedModel, batches: Iterable[Batch], *, seed: int = 0, loss: str = "task"
) -> Scores:
    """Score all heads and neurons of a dense model.

    Args:
        method: A name in `METHODS`.
        model: The dense classifier, on any device and in any mode; left as it was.
        batches: Labelled sentences. How they are divided into batches, and the order, move the scores by rounding only.
        seed: Seed of the scores that come from chance; no other method reads it.
        loss: A name in `LOSSES`; only the methods that take gradients read it.

    Returns:
        The scores of heads and neurons; the same for the same arguments.

    Raises:
        UserError: If there is no such method, or no such loss.
        ValueError: If the model is pruned, a score that needs sentences gets none, or a score is not finite.

    Reference:
        The functions in `METHODS` name theirs.
    """
    if method not in METHODS:
        raise UserError(unknown_name("importance", method, METHODS))
    if loss not in LOSSES:
        raise UserError(unknown_name("loss of the importance", loss, LOSSES))
    if plan_of(model.config) != Plan.dense(shape_of(model)):
        raise ValueError(f"the model holds {plan_of(model.config)}: importance is scored on the dense model")
    return METHODS[method](model, batches, seed=seed, loss=LOSSES[loss])


def fisher(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    *,
    seed: int = 0,  # noqa: ARG001 # by protocol
    loss: Loss = task,
) -> Scores:
    """Score by the diagonal of the Fisher information: the mean over sentences of g_iu squared.

    Args:
        model: The dense classifier.
        batches: Labelled sentences.
        seed: Not read.
        loss: With `task` it is the empirical Fisher information, with `distillation` the true one.

    Returns:
        Scores in squared units of the loss (nats; in a regression squared labels).

    Raises:
        ValueError: If there are no sentences.

    Reference:
        Kwon et al. 2022, "A Fast Post-Training Pruning Framework for Transformers": the diagonal
        Fisher information of the mask variables.
    """
    return _mean_over_sentences(model, batches, torch.square, loss)


def taylor(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    *,
    seed: int = 0,  # noqa: ARG001 # by protocol
    loss: Loss = task,
) -> Scores:
    """Score by the first-order change of the loss when a unit is removed: the mean over sentences of |g_iu|.

    Args:
        model: The dense classifier.
        batches: Labelled sentences.
        seed: Not read.
        loss: With `distillation` it is the change of log p(y), mean over the labels y that the model would give.

    Returns:
        Scores in units of the loss (nats; in a regression squared labels).

    Raises:
        ValueError: If there are no sentences.

    Reference:
        Michel, Levy, Neubig 2019, "Are Sixteen Heads Really Better than One?", the score I_h of heads; Molchanov et al.
        2017, "Pruning Convolutional Neural Networks for Resource Efficient Inference", the Taylor criterion.
    """
    return _mean_over_sentences(model, batches, torch.abs, loss)


def magnitude(
    model: PreTrainedModel,
    batches: Iterable[Batch],  # noqa: ARG001 # by protocol
    *,
    seed: int = 0,  # noqa: ARG001
    loss: Loss = task,  # noqa: ARG001
) -> Scores:
    """Score by the Euclidean norm of all the parameters that go when a unit is cut, the biases included.

    Args:
        model: The dense classifier.
        batches: Not read.
        seed: Not read.
        loss: Not read.

    Returns:
        Scores in units of the weights.

    Reference:
        Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks", for whole units.
    """
    heads, neurons = [], []
    layout = family_of(model).layout
    for layer in layers_of(model):
        squares = _squares(layer, layout.into_attention, layout.attention_output)
        heads.append(squares.view(shape_of(model).heads, -1).sum(dim=1).sqrt())
        neurons.append(_squares(layer, (layout.up,), layout.down).sqrt())
    return Scores(heads=torch.stack(heads), neurons=torch.stack(neurons))


def chance(
    model: PreTrainedModel,
    batches: Iterable[Batch],  # noqa: ARG001 # by protocol
    *,
    seed: int,
    loss: Loss = task,  # noqa: ARG001
) -> Scores:
    """Score by chance: the control that a method has to beat.

    Args:
        model: The dense classifier; only its sizes matter.
        batches: Not read.
        seed: Seed of the scores. The global random state is neither read nor moved.
        loss: Not read.

    Returns:
        Scores without unit, uniform from 0 to 1.
    """
    shape, dice = shape_of(model), torch.Generator().manual_seed(seed)
    return Scores(
        heads=torch.rand(shape.layers, shape.heads, dtype=torch.float64, generator=dice),
        neurons=torch.rand(shape.layers, shape.neurons, dtype=torch.float64, generator=dice),
    )


METHODS: dict[str, Method] = {"fisher": fisher, "taylor": taylor, "magnitude": magnitude, "random": chance}
"""The scores by name."""


def _squares(layer: nn.Module, into: Sequence[str], out: str) -> Tensor:
    """Sum of the squared parameters of each channel (channels,): rows of the projections `into`, columns of `out`."""
    total = _exact(layer.get_parameter(f"{out}.weight")).square().sum(dim=0)
    for path in into:
        weight, bias = (_exact(layer.get_parameter(f"{path}.{name}")) for name in ("weight", "bias"))
        total = total + weight.square().sum(dim=1) + bias.square()
    return total


def _exact(values: Tensor) -> Tensor:
    return values.detach().cpu().double()  # in this order: Apple's GPUs have no float64


def _mean_over_sentences(
    model: PreTrainedModel, batches: Iterable[Batch], score: Callable[[Tensor], Tensor], loss: Loss
) -> Scores:
    """Average `score` of the gradients g_iu over all sentences, in float64."""
    shape = shape_of(model)
    heads = torch.zeros(shape.layers, shape.heads, dtype=torch.float64)
    neurons = torch.zeros(shape.layers, shape.neurons, dtype=torch.float64)
    sentences = 0
    with evaluating(model):
        for batch in batches:
            for weights, of_heads, of_neurons in _gradients(model, batch, loss):
                heads += (weights * score(of_heads)).sum(dim=0)
                neurons += (weights * score(of_neurons)).sum(dim=0)
            sentences += len(batch["input_ids"])
    if sentences == 0:
        raise ValueError("importance on 0 sentences: at least 1 is needed")
    return Scores(heads=heads / sentences, neurons=neurons / sentences)


def _gradients(model: PreTrainedModel, batch: Batch, loss: Loss) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The gradients g_iu of one batch, for each of its losses.

    One backward pass gives them for all sentences: each has its own factors, and the losses are summed, so that no
    sentence's factors reach another one's loss. The attention backend is fixed, as some others round differently from
    run to run.

    Returns:
        Weights (batch, 1, 1), gradients (batch, layers, heads) and (batch, layers, neurons), float64 on the CPU.
    """
    shape = shape_of(model)
    batch = {name: values.to(model.device) for name, values in batch.items()}
    size = len(batch["input_ids"])
    heads = _ones(model, size, shape.layers, shape.heads)
    neurons = _ones(model, size, shape.layers, shape.neurons)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), _factors(model, heads, neurons):
        logits = model(**{name: batch[name] for name in INPUTS if name in batch}).logits
        parts = [(weights, losses.sum()) for weights, losses in loss(logits, batch["labels"])]
    for number, (weights, total) in enumerate(parts, start=1):
        of_heads, of_neurons = torch.autograd.grad(total, (heads, neurons), retain_graph=number < len(parts))
        yield _exact(weights)[:, None, None], _exact(of_heads), _exact(of_neurons)


def _ones(model: PreTrainedModel, *size: int) -> Tensor:
    return torch.ones(*size, device=model.device, dtype=model.dtype, requires_grad=True)


@contextmanager
def _factors(model: PreTrainedModel, heads: Tensor, neurons: Tensor) -> Iterator[None]:
    """Multiply what each unit sends into its output projection by its factor, as long as the context lasts.

    Args:
        model: The dense classifier.
        heads: Factors (batch, layers, heads).
        neurons: Factors (batch, layers, neurons).
    """
    handles = []
    try:
        layout = family_of(model).layout
        for number, layer in enumerate(layers_of(model)):
            for path, factors in ((layout.attention_output, heads), (layout.down, neurons)):
                projection = layer.get_submodule(path)
                handles.append(projection.register_forward_pre_hook(_scale_by(factors[:, number])))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _scale_by(factors: Tensor) -> Callable[[nn.Module, tuple[Tensor]], Tensor]:
    """A hook that scales the channels of each unit; inputs (batch, tokens, units*d), factors (batch, units)."""

    def hook(_module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        (values,) = inputs
        by_unit = values.view(*values.shape[:-1], factors.shape[1], -1)
        return (by_unit * factors[:, None, :, None]).flatten(-2)

    return hook


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off, and give every module its mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training

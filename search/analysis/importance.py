"""Importance as a picture: which heads, neurons and blocks of the dense model matter, layer by layer.

    heads      layer × head            one cell each
    neurons    layer × quantile        the neurons of a layer in the order of their scores, lowest first
    blocks     layer × (attention, feed-forward)      what the loss gains when the block vanishes

On the terminal a cell is a bar whose height, and colour, is its score among all of its kind; in the page a colour of
viridis, which rises in lightness and is told apart by colour-blind people. Scores that span more than two decades are
shown by their logarithm.
"""

from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

Scores = npt.NDArray[np.float64]

QUANTILES = 20
"""Cells of a layer's neurons: the middles of so many equal shares of them."""

UNITS = {"fisher": "nats²", "taylor": "nats", "magnitude": "norm of the weights", "random": "no unit"}
"""Unit of the scores of heads and neurons by method; one that is not named has none."""

BLOCKS = ("attention", "feed-forward")
"""The blocks of a layer, as in the columns of `Importance.blocks`."""

_BARS = "▁▂▃▄▅▆▇█"
_VIRIDIS = ("#414487", "#355f8d", "#2a788e", "#21918c", "#22a884", "#44bf70", "#7ad151", "#bddf26")
"""Colours of the bars: viridis without its ends, which vanish on dark and on light terminals."""

_BLOCK_COLOURS = ("#0072b2", "#e69f00")  # blue and orange of Okabe and Ito's palette for colour-blind people

_DECADES = 6
"""A logarithmic scale ends so many decades below the largest score: zeros and rounding lie there."""


@dataclass(frozen=True, eq=False)
class Importance:
    """The scores of a study's dense model, and how they were made.

    Attributes:
        study: Name of the study.
        method: Name of the score.
        loss: Loss of the scores that have one: `task` or `distillation`.
        rows: Training rows that were asked for.
        heads: Scores (layers, heads).
        neurons: Scores (layers, neurons).
        blocks: Gain of the loss without the block (layers, 2), attention then feed-forward; None where the study was
            prepared before blocks were scored.
        regression: Whether the labels are numbers: then losses are squared errors.
    """

    study: str
    method: str
    loss: str
    rows: int
    heads: Scores
    neurons: Scores
    blocks: Scores | None
    regression: bool = False

    @property
    def unit(self) -> str:
        """Unit of the scores of heads and neurons."""
        if self.regression and self.method in ("fisher", "taylor"):
            power = (2 if self.loss == "task" else 1) * (2 if self.method == "fisher" else 1)
            return "label" + {1: "", 2: "²", 4: "⁴"}[power]
        return UNITS.get(self.method, "no unit")

    @property
    def loss_unit(self) -> str:
        """Unit of the losses, and of what blocks gain."""
        return "label²" if self.regression else "nats"

    @property
    def title(self) -> str:
        """Study, method, loss, unit and number of rows in one line."""
        on = f" on the {self.loss} loss, importance.rows {self.rows}" if self.method in ("fisher", "taylor") else ""
        return f"Importance in study {self.study}: {self.method} [{self.unit}]{on}"


def quantiles(scores: Scores, count: int = QUANTILES) -> Scores:
    """The neurons of each layer in the order of their scores, at the middles of equal shares.

    Args:
        scores: Scores (layers, neurons).
        count: Number of shares.

    Returns:
        Quantiles (layers, count), rising.

    Example:
        >>> quantiles(np.array([[3.0, 0.0, 1.0, 2.0, 4.0]]), 2)
        array([[1., 3.]])
    """
    return np.quantile(scores, (np.arange(count) + 0.5) / count, axis=1).T


def levels(scores: Scores) -> tuple[Scores, bool]:
    """Where scores lie between the lowest and the highest of them.

    Args:
        scores: Scores of any shape.

    Returns:
        Levels from 0 to 1 in the same shape, and whether they are those of the logarithms: so where no score is below
        0 and the positive ones span more than two decades. Equal scores are all at 0.
    """
    shown, is_log = _shown(scores)
    span = float(np.ptp(shown))
    return (shown - shown.min()) / (span or 1.0), is_log


def _shown(scores: Scores) -> tuple[Scores, bool]:
    """The scores, or their decimal logarithms where these tell more; zeros at the lower end."""
    positive = scores[scores > 0]
    if scores.min() < 0 or positive.size == 0 or positive.max() <= 100 * positive.min():
        return scores, False
    lowest = max(float(positive.min()), float(positive.max()) * 10.0**-_DECADES)
    return np.log10(np.maximum(scores, lowest)), True


def least_important_blocks(blocks: Scores) -> list[tuple[int, str, float]]:
    """All blocks, the least important first.

    Args:
        blocks: Gains (layers, 2).

    Returns:
        Layer, kind of block and gain.
    """
    order = np.argsort(blocks, axis=None, kind="stable")
    return [(int(place) // 2, BLOCKS[int(place) % 2], float(blocks.flat[place])) for place in order]


def render_importance(scores: Importance) -> Group:
    """The scores for a terminal of 100 columns: a row for each layer, a bar for each head and each share of neurons."""
    neurons = quantiles(scores.neurons)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("layer", justify="right")
    table.add_column(f"heads 0-{scores.heads.shape[1] - 1}", no_wrap=True)
    table.add_column("neurons, lowest to highest", no_wrap=True)
    strips = [_strips(scores.heads), _strips(neurons)]
    if scores.blocks is not None:
        for name in BLOCKS:
            table.add_column(f"without\n{name}", justify="right")
    for layer in range(len(scores.heads)):
        gains = [] if scores.blocks is None else [Text(f"{gain:+.4f}") for gain in scores.blocks[layer]]
        table.add_row(str(layer), strips[0][layer], strips[1][layer], *gains)
    notes = [_range("heads", scores.heads), _range(f"neurons at {QUANTILES} quantiles of each layer", neurons)]
    if scores.blocks is None:
        notes.append("blocks: this study was prepared before whole blocks were scored")
    else:
        least = [f"{kind} of layer {layer}" for layer, kind, _gain in least_important_blocks(scores.blocks)[:4]]
        gain = f"mean gain of the {scores.loss} loss in {scores.loss_unit}"
        notes.append(f"blocks: {gain} when the block vanishes, its bias staying")
        notes.append(f"least important blocks: {', '.join(least)}")
    return Group(Text(scores.title, style="bold"), table, *(Text(note, style="dim") for note in notes))


def _strips(scores: Scores) -> list[Text]:
    """One line of bars for each row of scores (layers, cells)."""
    heights = np.minimum((levels(scores)[0] * len(_BARS)).astype(int), len(_BARS) - 1)
    return [Text.assemble(*((_BARS[height], _VIRIDIS[height]) for height in row)) for row in heights]


def _range(what: str, scores: Scores) -> str:
    scale = "logarithmic" if levels(scores)[1] else "linear"
    return f"{what}: {_BARS[0]} {scores.min():.2g} to {_BARS[-1]} {scores.max():.2g}, {scale}"


def importance_page(scores: Importance) -> str:
    """The scores as a page of its own: everything is in it, and it asks for nothing from elsewhere.

    Returns:
        HTML with the two heat maps and, where blocks were scored, their bars.
    """
    from plotly import graph_objects
    from plotly.subplots import make_subplots

    unit = scores.unit
    shares = [f"{100 * (share + 0.5) / QUANTILES:g} %" for share in range(QUANTILES)]
    titles = ["Heads", "Neurons: quantiles of each layer's scores"]
    if scores.blocks is not None:
        gain = f"mean gain of the {scores.loss} loss when the block vanishes, its bias staying"
        titles.append(f"Blocks: {gain} [{scores.loss_unit}]")
    rows = len(titles)
    figure = make_subplots(rows=rows, cols=1, subplot_titles=titles, vertical_spacing=0.3 / rows)
    labels = [f"layer {layer}" for layer in range(len(scores.heads))]
    heads = [f"{head}" for head in range(scores.heads.shape[1])]
    for row, (values, x, of) in enumerate(
        ((scores.heads, heads, "head"), (quantiles(scores.neurons), shares, "quantile")), start=1
    ):
        middle = 1 - (row - 0.5) / rows
        figure.add_trace(_heat_map(values, x, labels, of, unit, middle, 0.8 / rows), row=row, col=1)
        figure.update_xaxes(type="category", row=row, col=1)
        figure.update_yaxes(type="category", autorange="reversed", row=row, col=1)
    if scores.blocks is not None:
        for name, colour, gains in zip(BLOCKS, _BLOCK_COLOURS, scores.blocks.T, strict=True):
            bars = graph_objects.Bar(x=labels, y=gains.tolist(), name=name, marker_color=colour)
            figure.add_trace(bars, row=rows, col=1)
        figure.update_yaxes(title_text=scores.loss_unit, row=rows, col=1)
    figure.update_layout(
        title=scores.title,
        template="plotly_white",
        height=max(280, 90 + 26 * len(labels)) * rows + 120,
        legend={"orientation": "h", "y": -0.06},
    )
    page: str = figure.to_html(include_plotlyjs=True, include_mathjax=False, div_id="importance")
    return page.replace("<head>", f"<head>\n    <title>{escape(scores.title)}</title>", 1)


def _heat_map(values: Scores, x: list[str], y: list[str], of: str, unit: str, middle: float, height: float) -> Any:
    """A heat map of scores (layers, cells), with its colour bar beside it."""
    from plotly import graph_objects

    shown, is_log = _shown(values)
    return graph_objects.Heatmap(
        z=shown.tolist(),
        x=x,
        y=y,
        customdata=values.tolist(),
        colorscale="Viridis",
        colorbar={"title": f"log10 of {unit}" if is_log else unit, "y": middle, "len": height},
        hovertemplate=f"%{{y}}, {of} %{{x}}: %{{customdata:.3g}} {unit}<extra></extra>",
    )

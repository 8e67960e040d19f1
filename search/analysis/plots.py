"""The report's pictures for a page that puts no words around them: each with a title and a legend, and small.

They are kept in the study, where every worker reads past them: of very many trials fewer are drawn than in the report.
"""

import plotly.graph_objects as go

from search.analysis.dimensions import dimension_importance
from search.analysis.report import pictures
from search.records import StudyRecord

TITLES = {
    "layers-heads": "Heads kept along the front",
    "layers-neurons": "Neurons kept along the front",
    "plot-hypervolume": "Hypervolume, with the 95 % band of the noise",
    "plot-importance": "How much each dimension moves each objective",
    "plot-time": "Where the time went",
}
"""By the name of the picture; a scatter plot is named by its axes."""

MOST_SCATTERS = 10
"""Pairs of objectives that are drawn: all of them up to five objectives."""

INK = "#7a828e"
"""Colour of all text: it reads on a white page and on a dark one."""


def plots(study: StudyRecord, *, with_importance: bool = True) -> dict[str, go.Figure]:
    """The pictures of a study, by a name that stays the same.

    Args:
        study: The study. It is not changed.
        with_importance: Whether the dimensions' importance is among them, which takes by far the longest.

    Returns:
        Figures; those that would be empty are left out. Names of the study are escaped in them.
    """
    drawn = pictures(study, dimension_importance(study) if with_importance else [])
    scatters = [name for name in drawn if name.startswith("scatter")]
    for name in scatters[MOST_SCATTERS:]:
        del drawn[name]
    for name, figure in drawn.items():
        _dress(figure, TITLES.get(name) or _title(figure), has_legend=name in scatters)
    return drawn


def _dress(figure: go.Figure, title: str, *, has_legend: bool) -> None:
    figure.update_layout(
        title={"text": title, "x": 0.01, "xanchor": "left", "font": {"size": 15}},
        margin={"l": 64, "r": 16, "t": 52, "b": 56},
        font={"color": INK},
        height=(figure.layout.height or 340) + (130 if has_legend else 40),
        showlegend=has_legend,
        legend={"orientation": "h", "yanchor": "top", "y": -0.22},
    )


def _title(figure: go.Figure) -> str:
    def bare(text: str) -> str:
        return text.removesuffix(" (less is better)").removesuffix(" (more is better)")

    return f"{bare(figure.layout.yaxis.title.text)} against {bare(figure.layout.xaxis.title.text)}"

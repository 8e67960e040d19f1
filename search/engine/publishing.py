"""Writing into a study what optuna-dashboard shows of it beside the trials: its note and its pictures.

    end of `paretobert work`, of a script, of a confirmation ─┐
    `paretobert dashboard`, when it opens and each minute ────┴─► rendered ──► other than what stands there? ──► written

Nothing here belongs to the search: workers never wait for it, and who calls it goes on when it fails. Each picture is
one row: optuna-dashboard's own function cuts it into pieces of 2 kB, each in a transaction of its own, and of two
processes that write at once a page would get a mixture that it cannot read.
"""

from optuna.study import Study
from optuna_dashboard import save_note
from optuna_dashboard._custom_plot_data import SYSTEM_ATTR_PLOT_DATA
from optuna_dashboard._note import get_note_from_system_attrs

from search.engine import storage as storages
from search.engine import study as studies

PREFIX = "paretobert-"
"""What the names of our pictures begin with: others in the study are a person's."""


def publish(study: Study, *, url: str, artifacts: str | None = None, with_importance: bool = True) -> int:
    """Write note and pictures where they differ from what the study holds.

    Any number of processes may do so at once: each row is whole, and the last one stays.

    Args:
        study: The study.
        url: URL of its storage; its password is not written.
        artifacts: Where its artifacts are, as a command would name it; None where that is the default.
        with_importance: Whether the importance of the dimensions is computed anew: seconds for a large study.

    Returns:
        How many of them were written.
    """
    from search.analysis.note import merged, render_note
    from search.analysis.plots import plots

    records = studies.read(study)
    present = study._storage.get_study_system_attrs(study._study_id)
    written = 0
    old = get_note_from_system_attrs(present, None)["body"]
    new = merged(old, render_note(records, storage=storages.shown(storages.absolute(url)), artifacts=artifacts))
    if new != old:
        save_note(study, new)
        written += 1
    for name, figure in plots(records, with_importance=with_importance).items():
        key, text = f"{SYSTEM_ATTR_PLOT_DATA}{PREFIX}{name}:0", figure.to_json()
        if present.get(key) != text:
            study._storage.set_study_system_attr(study._study_id, key, text)
            written += 1
    return written

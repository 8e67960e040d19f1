"""A study opened again to do something with one of its trials: its record, and what all its trials have in common.

The database says by which hashes everything is found among the artifacts; neither script, checkpoint nor data are
needed.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from search.definition import EnergySettings
from search.listener import Listener
from search.process import Place, artifacts_of, check_built_in, device_of, prepared_again, take_threads
from search.space import Space

if TYPE_CHECKING:
    from search.artifacts import Artifacts
    from search.engine.study import Stored
    from search.preparation import Prepared
    from search.records import StudyRecord


@dataclass(frozen=True)
class Reopened:
    """A study that was opened again.

    Attributes:
        study: The study with all its trials.
        prepared: What is the same for all of them.
        artifacts: Where that is kept.
    """

    study: "StudyRecord"
    prepared: "Prepared"
    artifacts: "Artifacts"


def reopen(name: str, place: Place, listener: Listener, *, measures: bool) -> Reopened:
    """Open a study again.

    Args:
        name: Its name.
        place: Where it is kept, and the device to work on.
        listener: Is told how it goes on.
        measures: Whether its latencies and energies will be measured again: then the device has to be the one that it
            was measured on, its energy counter readable, and the study without objectives of its own script. Else any
            device will do, and `prepared.objectives` measure on that.

    Returns:
        The study and what its trials have in common.

    Raises:
        UserError: If the study is not there, its artifacts are not, or the device cannot be used.
    """
    from search.engine import storage as storages
    from search.engine import study as studies

    opened = storages.open_storage(place.storage, create=False, **place.patience, note=listener.note)
    found = studies.get(opened, name)
    about = studies.stored(found)
    device = device_of(place.device)
    take_threads(about, device, listener)
    if measures:
        check_built_in(about.definition)
    artifacts = artifacts_of(place, name)
    asked = about if measures else _without_measuring(about)
    prepared = prepared_again(asked, artifacts, device, listener, machine=about.machine if measures else None)
    space = Space.of(about.definition.space, prepared.shape, about.definition.recovery)
    return Reopened(studies.read(found), replace(prepared, definition=about.definition, space=space), artifacts)


def _without_measuring(about: "Stored") -> "Stored":
    """The same study without what only its machine can measure; what determines a trial's weights stays."""
    eager = about.definition.latency.model_copy(update={"backend": "eager", "dtype": "float32", "source": "measured"})
    space = about.definition.space.model_copy(update={"precision": ("fp32",)})
    fields = {"space": space, "energy": EnergySettings(source="model"), "latency": eager, "latencies": {}}
    definition = about.definition.model_copy(update=fields)
    return replace(about, definition=definition, energy_source="model", reference_ms={})

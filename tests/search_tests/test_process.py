"""What a study says when it is begun in this process, and on which device it is looked at again."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import engine_cases
import pytest
from engine_cases import DEFINITION, SilentListener
from small_study import definition_in
from sqlalchemy import Pool, event
from transformers import BertForSequenceClassification

from search.definition import Definition
from search.engine import storage, study
from search.errors import UserError
from search.limits import Limits
from search.process import Place, Start, begin, device_of, take_total
from search.run import measured_on, start


@pytest.fixture
def definition(tmp_path: Path, minilm: Path, movie_reviews: Path) -> Definition:
    """A study of a checkpoint without a classifier, of few steps."""
    return definition_in(tmp_path, minilm, movie_reviews, teacher={"epochs": 0.1}, task={"train_rows": 40})


def small(**engine: object) -> Definition:
    """The study of the engine's tests, with these settings of its search."""
    return DEFINITION.model_copy(update={"engine": DEFINITION.engine.model_copy(update=engine)})


def said(definition: Definition, folder: Path) -> list[str]:
    listener = SilentListener()
    place = Place(f"sqlite:///{folder}/{definition.name}.db", str(folder / definition.name))
    assert begin(Start(definition, only_prepare=True), place, Limits(), listener)
    return [note for note in listener.notes if "classifier" in note]


def test_who_gives_a_classifier_is_told_that_it_is_fine_tuned_again(definition: Definition, tmp_path: Path) -> None:
    assert said(definition, tmp_path) == []
    BertForSequenceClassification.from_pretrained(definition.model).save_pretrained(definition.model)
    again = definition.model_copy(update={"name": "again"})
    assert said(again, tmp_path) == [
        f"'{definition.model}' holds a classifier already, and will be fine-tuned again; with teacher.fine_tuned it is "
        "the dense model as it is"
    ]
    assert said(again, tmp_path) == []  # it is there, and was said
    as_it_is = definition.teacher.model_copy(update={"fine_tuned": True})
    assert said(definition.model_copy(update={"name": "as-it-is", "teacher": as_it_is}), tmp_path) == []


def test_who_moved_the_data_away_is_told_how_to_go_on(definition: Definition, tmp_path: Path) -> None:
    assert said(definition, tmp_path) == []
    Path(definition.data).unlink()
    message = f"data is '{definition.data}': no such file or folder; put it back, or go on without it: paretobert work"
    with pytest.raises(UserError, match=re.escape(message)):
        said(definition, tmp_path)


class Preparing(SilentListener):
    """Counts the connections that are open whenever something is prepared."""

    def __init__(self, connections: set[int]) -> None:
        super().__init__()
        self.connections = connections
        self.counts: set[int] = set()

    def stage(self, *_: object) -> None:
        self.counts.add(len(self.connections))


@pytest.fixture
def connections() -> Iterator[set[int]]:
    """The database connections that were opened since, and are open."""
    opened: set[int] = set()

    def on_connect(connection: object, _record: object) -> None:
        opened.add(id(connection))

    def on_close(connection: object, _record: object) -> None:
        opened.discard(id(connection))

    event.listen(Pool, "connect", on_connect)
    event.listen(Pool, "close", on_close)
    yield opened
    event.remove(Pool, "connect", on_connect)
    event.remove(Pool, "close", on_close)


def test_no_connection_is_open_while_what_all_trials_need_is_made(
    definition: Definition, tmp_path: Path, connections: set[int]
) -> None:
    url, start = f"sqlite:///{tmp_path}/study.db", Start(definition, only_prepare=True)
    assert begin(start, Place(url, str(tmp_path / "artifacts")), Limits(), SilentListener())
    connections.clear()
    assert storage.existing(url, "another") is None
    assert not connections
    listener = Preparing(connections)
    elsewhere = Place(url, str(tmp_path / "elsewhere"))
    assert begin(start, elsewhere, Limits(), listener)  # the study is there, and is looked at first
    assert listener.counts == {0}


@pytest.mark.parametrize(
    ("machine", "device"),
    [
        ("cpu with 2 threads, AMD EPYC 7B13", "cpu"),
        ("cpu with 2 threads", "cpu"),
        ("mps with 8 threads", "mps"),
        ("NVIDIA H100 80GB HBM3", "cuda:0"),
        ("NVIDIA GeForce RTX 2070 with Max-Q Design", "cuda:0"),
    ],
)
def test_a_study_is_looked_at_again_on_a_device_of_its_kind(
    machine: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "open_storage", lambda *_given, **_named: None)
    monkeypatch.setattr(study, "get", lambda *_given: None)
    monkeypatch.setattr(study, "stored", lambda _study: SimpleNamespace(machine=machine))
    assert measured_on("any", "any") == device


@pytest.mark.parametrize("name", ["cuda:99", "nonsense", "meta"])
def test_a_device_that_is_not_here_is_named(name: str) -> None:
    with pytest.raises(UserError, match=f"the device is '{name}', which cannot be used here"):
        device_of(name)


def test_a_script_does_not_lower_a_total_unless_it_is_told_to(tmp_path: Path) -> None:
    opened, _url = engine_cases.begin(tmp_path, small(trials=12))
    study.set_trials(opened, small(trials=40))  # somebody asked for more, elsewhere
    notes: list[str] = []
    assert take_total(opened, small(trials=12), notes.append, may_lower=False).engine.trials == 40
    assert study.stored(opened).definition.engine.trials == 40
    assert notes == ["the study has been asked for 40 trials, which stays; --trials 12 lowers it"]
    assert take_total(opened, small(trials=50), notes.append, may_lower=False).engine.trials == 50
    assert take_total(opened, small(trials=12), notes.append, may_lower=True).engine.trials == 12
    assert study.stored(opened).definition.engine.trials == 12
    assert len(notes) == 1


@pytest.mark.parametrize(
    ("arguments", "asks"), [((), False), (("--trials", "12"), True), (("--engine.trials", "6"), True)]
)
def test_a_total_on_the_command_line_is_asked_for(
    arguments: tuple[str, ...], asks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[bool] = []
    monkeypatch.setattr(sys.modules["search.run"], "_search", lambda *_, may_lower, **__: given.append(may_lower))
    start(small(trials=12), arguments, program="script.py", command=["python", "script.py"])
    assert given == [asks]


@pytest.mark.parametrize(("status", "ends"), [(130, KeyboardInterrupt), (1, SystemExit)])
def test_what_ends_before_there_is_a_study_is_told_as_it_is(
    status: int, ends: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules["search.run"], "_launch", lambda *_: status)
    with pytest.raises(ends):
        start(small(trials=12), ["--devices", "cpu:2"], program="script.py", command=["python", "script.py"])
    assert list(tmp_path.iterdir()) == []

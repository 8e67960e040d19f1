"""What a study says when it is begun in this process, and on which device it is looked at again."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from engine_cases import SilentListener
from small_study import definition_in
from sqlalchemy import Pool, event
from transformers import BertForSequenceClassification

from search.definition import Definition
from search.engine import storage, study
from search.errors import UserError
from search.limits import Limits
from search.process import Place, Start, begin, device_of
from search.run import measured_on


@pytest.fixture
def definition(tmp_path: Path, minilm: Path, movie_reviews: Path) -> Definition:
    """A study of a checkpoint without a classifier, of few steps."""
    return definition_in(tmp_path, minilm, movie_reviews, teacher={"epochs": 0.1}, task={"train_rows": 40})


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

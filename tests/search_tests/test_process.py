"""What a study says when it is begun in this process."""

from pathlib import Path

import pytest
from engine_cases import SilentListener
from small_study import definition_in
from transformers import BertForSequenceClassification

from search.definition import Definition
from search.limits import Limits
from search.process import Place, Start, begin


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
        f"'{definition.model}' holds a classifier already, and is fine-tuned again; with teacher.fine_tuned it is the "
        "dense model as it is"
    ]
    assert said(again, tmp_path) == []  # it is there, and was said
    as_it_is = definition.teacher.model_copy(update={"fine_tuned": True})
    assert said(definition.model_copy(update={"name": "as-it-is", "teacher": as_it_is}), tmp_path) == []

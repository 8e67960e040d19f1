"""A real study of a small BERT on real sentences, searched to its end in seconds; what its trials computed is noted."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from engine_cases import SilentListener
from torch import Tensor
from transformers import BertConfig, BertModel

from search import pipeline
from search.definition import Definition
from search.limits import Limits
from search.process import Place, Start, begin
from search.reopening import Reopened, reopen


@dataclass(frozen=True)
class Searched:
    """A study that was searched.

    Attributes:
        name: Its name.
        place: Where it is kept.
        again: It and what its trials have in common, opened again.
        logits: Logits on the selection split that each trial was scored by, by number.
    """

    name: str
    place: Place
    again: Reopened
    logits: dict[int, Tensor]

    @property
    def arguments(self) -> list[str]:
        """What a command needs to find it."""
        return [self.name, "--storage", self.place.storage, "--artifacts", str(self.place.artifacts)]


def checkpoint_in(folder: Path, minilm: Path, **fields: Any) -> Path:
    """A checkpoint of three small layers with random weights, made in a folder, and the packaged one's tokenizer."""
    torch.manual_seed(0)
    size = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
    BertModel(BertConfig(**{"max_position_embeddings": 64, **size, **fields})).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(minilm / name, folder / name)
    return folder


def definition_in(folder: Path, minilm: Path, movie_reviews: Path, *, pairs: bool = False, **fields: Any) -> Definition:
    """The definition of a small study, with its checkpoint and its data in a folder."""
    # Large weights: every head and neuron shows in the logits.
    checkpoint_in(folder / "checkpoint", minilm, initializer_range=0.3)
    table = pd.read_csv(movie_reviews)
    table = table[table["source"] == "rotten_tomatoes"]
    table["second"] = table["text"].str[::-1]
    table.to_csv(folder / "data.csv", index=False)
    values: dict[str, Any] = {
        "name": "small",
        "model": str(folder / "checkpoint"),
        "data": str(folder / "data.csv"),
        "task": {
            "text": ["text", "second"] if pairs else ["text"],
            "train_rows": 200,
            "selection_rows": 100,
            "held_out_rows": 20,
            "max_tokens": 48 if pairs else 32,
        },
        "space": {"neuron_block": 16},
        "teacher": {"epochs": 2, "learning_rate": 1e-3},
        "importance": {"rows": 32},
        "recovery": {"steps": 4, "learning_rate": 1e-3, "precision": "fp32"},
        "latency": {"batch": 2, "tokens": 16, "repeats": 3, "seconds": 0},
        "engine": {"trials": 5, "population": 8, "ladder": [0.5], "tilts": [0], "drop_blocks": [1, 2]},
    }
    return Definition.model_validate(merged(values, fields))


SCHEDULE = {"learning_rate": {"low": 1e-4, "high": 1e-2}, "steps": {"low": 2, "high": 6}}
SMALLER = {"embedding": {"low": 0.0}, "embedding_block": 16, "vocabulary": "train"}
SMALL: dict[str, Any] = {"space": {"schedule": SCHEDULE}, "engine": {"seed": 4}}
"""Of single texts, with the schedule among its dimensions; with this seed the trial that is searched moves it."""
PAIRS: dict[str, Any] = {"name": "pairs", "pairs": True, "space": SMALLER}
"""Of pairs of texts, with factorised word embeddings and a reduced vocabulary."""


def merged(values: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Nested values with others put into them."""
    both = {**values, **more}
    return {k: merged(values[k], v) if isinstance(v, dict) and k in values else v for k, v in both.items()}


def searched(definition: Definition, folder: Path) -> Searched:
    """Search a study to its end in this process."""
    place = Place(f"sqlite:///{folder}/study.db", str(folder / "artifacts"))
    logits, real = {}, pipeline.selection_logits

    def noted(*given: Any, **named: Any) -> Tensor:
        logits[listener.stages[-1][0]] = found = real(*given, **named)
        return found

    listener = SilentListener()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "selection_logits", noted)
        assert begin(Start(definition), place, Limits(), listener)
    return Searched(definition.name, place, reopen(definition.name, place, listener, measures=False), logits)

"""Confirming points of a real study: what is trained and kept, what a kill loses, and what is said of the search."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_cases import SilentListener
from rich.console import Console
from safetensors.torch import load_file
from small_study import Searched, definition_in, searched

from search import candidates, moving, pipeline, preparation, shipping
from search.analysis.confirmed import compare, sentences
from search.analysis.pick import pick
from search.analysis.report import render_report
from search.analysis.trial import render_trial
from search.artifacts import Artifacts
from search.bert.checkpoint import load
from search.bert.encoding import Encoded
from search.bert.training import score
from search.confirming import Wanted, confirm, spread
from search.deploy import confirm as deployed
from search.deploy.confirm import full_budget, seeds_of
from search.deploy.export import Wanted as ExportWanted
from search.engine import storage, study
from search.errors import TrialError, UserError
from search.records import StudyRecord


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, minilm: Path, movie_reviews: Path) -> Searched:
    """A study that was searched to its end; its held-out rows have another size than its selection rows."""
    folder = tmp_path_factory.mktemp("small")
    definition = definition_in(folder, minilm, movie_reviews, task={"held_out_rows": 60})
    return searched(definition, folder)


@pytest.fixture(scope="module")
def confirmed(small: Searched) -> tuple[StudyRecord, list[str]]:
    """The study after two of its trials were confirmed with two seeds, and what was said meanwhile."""
    listener = SilentListener()
    return confirm(small.name, small.place, Wanted((1, 2), seeds=2, epochs=2), listener), listener.notes


def made(small: Searched) -> list[Path]:
    """The trainings that are kept."""
    return sorted(Path(str(small.place.artifacts)).glob("confirmation-*/record.json"))


def test_each_point_is_trained_with_every_seed_and_the_dense_model_stands_beside(
    confirmed: tuple[StudyRecord, list[str]], small: Searched
) -> None:
    result, notes = confirmed
    assert [each.trial for each in result.confirmations] == [0, 1, 2]
    dense, one, _two = result.confirmations
    assert (dense.seeds, dense.recovery) == ((), {})
    assert one.seeds == tuple(seeds_of(result, 1, 2))
    assert one.recovery["steps"] == round(200 / 32 * 2) > result.definition.recovery.steps
    assert len(made(small)) == 5
    assert sum("training" in note for note in notes) == 5
    rows = Encoded.from_tensors(
        load_file(next(Path(str(small.place.artifacts)).glob("tokens-*")) / "held_out.safetensors")
    )
    assert len(rows) == one.rows == 60
    logits = [load_file(file.with_name("held_out.safetensors"))["logits"] for file in made(small)]
    right = sorted(round(float((each.argmax(1) == rows.labels).float().mean()), 6) for each in logits)
    said = [value for each in result.confirmations for value in each.quantities["accuracy"]["each"]]
    assert right == sorted(round(value, 6) for value in said)
    for each in result.confirmations:
        accuracy = each.quantities["accuracy"]
        assert accuracy["value"] == pytest.approx(np.mean(accuracy["each"]))
        assert accuracy["low"] < accuracy["value"] < accuracy["high"]
        assert {"parameters", "latency_ms", "energy_mj", "encoder_share", "f1", "matthews"} <= set(each.quantities)
        parameters = result.records[each.trial].value("parameters")
        assert each.quantities["parameters"]["value"] == parameters
        assert len(each.quantities["latency_ms"]["each"]) == max(1, len(each.seeds))
        recorded = dict(result.records[each.trial].quantities["latency_ms"]["conditions"])
        recorded.pop("clock_mhz", None)
        assert each.quantities["latency_ms"]["conditions"] == recorded


def test_the_seeds_are_those_of_no_trial_and_more_of_them_begin_with_fewer(
    confirmed: tuple[StudyRecord, list[str]],
) -> None:
    result = confirmed[0]
    assert seeds_of(result, 1, 5)[:2] == seeds_of(result, 1, 2)
    every = [seed for trial in range(5) for seed in seeds_of(result, trial, 5)]
    assert len({*every, *(record.seed for record in result.records)}) == 25 + len(
        {record.seed for record in result.records}
    )


def test_what_is_done_is_not_done_again(
    confirmed: tuple[StudyRecord, list[str]], small: Searched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(*_given: Any, **_named: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr("search.deploy.confirm.rebuild", no_more)
    again = confirm(small.name, small.place, Wanted((1, 2), seeds=2, epochs=2), SilentListener())
    assert again.confirmations == confirmed[0].confirmations
    alone = confirm(small.name, small.place, Wanted((2,), seeds=2, epochs=2), SilentListener())
    assert alone.confirmations == again.confirmations  # what was confirmed before is compared as well


def copied(small: Searched, folder: Path) -> Searched:
    """The same study in a folder of its own."""
    artifacts = shutil.copytree(str(small.place.artifacts), folder / "artifacts")
    place = replace(small.place, storage=f"sqlite:///{folder}/study.db", artifacts=str(artifacts))
    moving.move(
        small.place.storage,
        place.storage,
        study=small.name,
        artifacts=place.artifacts,
        to_artifacts=None,
        console=Console(quiet=True),
    )
    return replace(small, place=place)


def stored_in(small: Searched) -> Any:
    """Its study in Optuna."""
    return study.get(storage.open_storage(small.place.storage, create=False), small.name)


def test_a_trial_that_is_confirmed_for_longer_leaves_no_claims_about_it_behind(
    confirmed: tuple[StudyRecord, list[str]], small: Searched, tmp_path: Path
) -> None:
    own = copied(small, tmp_path)
    one, two = confirmed[0].confirmations[1:]
    kept = stored_in(own)
    study.keep_confirmation(kept, replace(one, beats=(2,)))
    study.keep_confirmation(kept, replace(two, trial=3, seeds=(7,), beats=(1, 2)))  # of another machine, say
    result = confirm(own.name, own.place, Wanted((2,), seeds=1, steps=1), SilentListener())
    by_trial = {each.trial: each for each in result.confirmations}
    assert (by_trial[1].recovery["steps"], by_trial[2].recovery["steps"]) == (12, 1)
    assert by_trial[1].beats == ()
    assert by_trial[3].beats == (1,)
    assert "Points that took different numbers of steps are not ranked." in " ".join(sentences(result))


def test_fewer_seeds_take_nothing_away(
    confirmed: tuple[StudyRecord, list[str]], small: Searched, tmp_path: Path
) -> None:
    own, stored = copied(small, tmp_path), []
    with pytest.MonkeyPatch.context() as patch:
        keep = study.keep_confirmation
        patch.setattr(study, "keep_confirmation", lambda kept, one: stored.append(one) or keep(kept, one))
        result = confirm(own.name, own.place, Wanted((2,), seeds=1, epochs=2), SilentListener())
    assert result.confirmations == confirmed[0].confirmations
    assert [len(one.seeds) for one in stored if one.trial == 2] == [2] * sum(one.trial == 2 for one in stored)
    train_again, second = deployed.train_again, seeds_of(result, 2, 2)[1]

    def fails_once(*given: Any, **on: Any) -> Any:
        if given[-1] == second:
            raise TrialError("out of memory")
        return train_again(*given, **on)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deployed, "train_again", fails_once)
        result = confirm(own.name, own.place, Wanted((2,), seeds=2, epochs=2), SilentListener())
    assert result.confirmations == confirmed[0].confirmations


def test_what_another_process_confirms_meanwhile_stays(
    confirmed: tuple[StudyRecord, list[str]], small: Searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = copied(small, tmp_path)
    one, two = confirmed[0].confirmations[1:]
    kept, written = stored_in(own), []
    keep = study.keep_confirmation

    def noted(*given: Any) -> None:
        written.append(given[1].trial)
        keep(*given)

    class Meanwhile(SilentListener):
        """While trial 2 is trained, another process confirms trial 1 again and trial 3."""

        def note(self, text: str) -> None:
            if "trial 2, training 1 of" in text:
                keep(kept, replace(one, seconds=99.0, beats=tuple(trial for trial in one.beats if trial == 0)))
                keep(kept, replace(two, trial=3, seeds=(7,), beats=()))

    monkeypatch.setattr(study, "keep_confirmation", noted)
    result = confirm(own.name, own.place, Wanted((2,), seeds=1, steps=1), Meanwhile())
    assert [each.trial for each in result.confirmations] == [0, 1, 2, 3]
    assert result.confirmations[1].seconds == 99.0
    assert set(written) <= {0, 2}  # what did not change is not written


def test_show_report_and_sentences_name_what_was_confirmed(confirmed: tuple[StudyRecord, list[str]]) -> None:
    from rich.console import Console

    result = confirmed[0]
    console = Console(width=160)
    with console.capture() as capture:
        console.print(render_trial(result, result.records[1]))
    assert "on 60 held-out rows; 2 trainings of 12 steps" in capture.get()
    page = render_report(result)
    assert "Searched and confirmed" in page
    assert "The dense model, which nobody chose, has" in page
    assert "Searched and confirmed" not in render_report(replace(result, confirmations=()))


def test_what_was_confirmed_is_what_is_exported(
    confirmed: tuple[StudyRecord, list[str]], small: Searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, _notes = confirmed
    one = result.confirmations[1]
    trainings = {
        about["weights"]: (folder, about)
        for folder, about in ((file.parent, json.loads(file.read_text())) for file in made(small))
    }
    best, about = trainings[one.weights]
    plan = result.records[1].plan
    assert plan is not None
    keys = {name: json.loads((folder / "key.json").read_text()) for name, (folder, _about) in trainings.items()}
    wanted = [list(plan.heads), list(plan.neurons), None]
    own = [about for name, (_folder, about) in trainings.items() if keys[name]["plan"] == wanted]
    assert len(own) == 2
    assert about["selection"]["accuracy"] == max(a["selection"]["accuracy"] for a in own)
    assert one.best in one.seeds

    def no_more(*_given: Any, **_named: Any) -> Any:
        raise AssertionError("trained again")

    console = Console(file=io.StringIO(), width=200)
    with monkeypatch.context() as patched:
        patched.setattr("search.deploy.rebuild.bring_back", no_more)
        said = shipping.export(
            small.name, 1, tmp_path / "confirmed", small.place, ExportWanted(), console, confirmed=True
        )
    held_out = Encoded.from_tensors(
        load_file(next(Path(str(small.place.artifacts)).glob("tokens-*")) / "held_out.safetensors")
    )
    model = load(tmp_path / "confirmed")
    logits = score(model, held_out, pad_id=0, batch_size=32, precision="fp32")
    assert torch.allclose(logits, load_file(best / "held_out.safetensors")["logits"], atol=1e-5)
    assert said["recorded"]["accuracy"]["value"] == one.quantities["accuracy"]["value"]
    assert said["dense"]["accuracy"] == result.confirmations[0].quantities["accuracy"]
    assert f"confirmed {one.quantities['accuracy']['value']:.4f} on 60 held-out rows" in console.file.getvalue()
    written = (tmp_path / "confirmed" / "README.md").read_text(encoding="utf-8")
    assert "on 60 held-out rows that the search never saw, the mean of 2 trainings" in written
    assert "they are optimistic" not in written
    # Where the weights are gone, the same training is made again.
    shutil.copytree(str(small.place.artifacts), tmp_path / "elsewhere")
    kept = (tmp_path / "elsewhere").glob(f"candidate-{str(one.weights)[:20]}*/")
    shutil.rmtree(next(folder for folder in kept if folder.is_dir()))
    elsewhere = replace(small.place, artifacts=str(tmp_path / "elsewhere"))
    shipping.export(small.name, 1, tmp_path / "again", elsewhere, ExportWanted(), console, confirmed=True)
    again = load_file(tmp_path / "again" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "confirmed" / "model.safetensors").items():
        assert torch.equal(tensor, again[name]), name


def test_copying_a_study_takes_the_confirmed_weights_along(
    confirmed: tuple[StudyRecord, list[str]], small: Searched, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    moving.move(
        small.place.storage,
        f"sqlite:///{tmp_path}/study.db",
        study=small.name,
        artifacts=str(small.place.artifacts),
        to_artifacts=str(there),
        console=Console(quiet=True),
    )
    kept = [each.weights for each in confirmed[0].confirmations if each.weights is not None]
    assert len(kept) == 2
    assert all(Artifacts(there).found(candidates.KIND, weights) is not None for weights in kept)
    about = study.stored(stored_in(small))
    digests = [deployed.kept_as(about, confirmed[0], each).values() for each in confirmed[0].confirmations]
    trainings = [digest for each in digests for digest in each]
    assert len(trainings) == 5
    assert all(Artifacts(there).found(deployed.KIND, training) is not None for training in trainings)


def test_the_choice_of_a_confirmed_trial_says_what_was_confirmed(confirmed: tuple[StudyRecord, list[str]]) -> None:
    result, _notes = confirmed
    alone = replace(result, records=tuple(replace(r, state="failed") if r.trial != 1 else r for r in result.records))
    why = " ".join(pick(alone).why)
    assert "Trained again in full: accuracy" in why
    assert "on 60 held-out rows, 2 trainings" in why
    assert "confirm it on rows" not in why
    assert "confirm it on rows" in " ".join(pick(replace(alone, confirmations=())).why)


def test_what_is_not_confirmed_cannot_be_exported_as_that(
    confirmed: tuple[StudyRecord, list[str]], small: Searched, tmp_path: Path
) -> None:
    result, _notes = confirmed
    known = {each.trial for each in result.confirmations}
    other = next(
        record.trial for record in result.complete if record.trial not in known and record.answered_from is None
    )
    with pytest.raises(UserError, match=f"--confirmed.*trial {other} .*paretobert confirm"):
        shipping.export(
            small.name, other, tmp_path / "none", small.place, ExportWanted(), Console(quiet=True), confirmed=True
        )
    earlier = replace(result, confirmations=(replace(result.confirmations[1], best=None, weights=None),))
    with pytest.raises(UserError, match="did not note which of its trainings is the best"):
        shipping.confirmation_of(earlier, 1)


def test_a_search_never_reads_the_held_out_rows(
    tmp_path: Path, minilm: Path, movie_reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def noted(file: Path, *given: Any, **named: Any) -> Any:
        read.append(Path(file).name)
        return load_file(file, *given, **named)

    monkeypatch.setattr(preparation, "load_file", noted)
    small = searched(definition_in(tmp_path, minilm, movie_reviews, engine={"trials": 2}), tmp_path)
    assert {"train.safetensors", "selection.safetensors"} <= set(read)
    assert "held_out.safetensors" not in read
    confirm(small.name, small.place, Wanted((0,)), SilentListener())
    assert "held_out.safetensors" in read


def test_a_kill_loses_one_training_at_most(small: Searched, confirmed: object) -> None:
    assert confirmed
    before = {file: file.stat().st_mtime_ns for file in made(small)}
    command = [sys.executable, "-m", "search", "confirm", *small.arguments, "1", "2", "--seeds", "4", "--epochs", "2"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "150"}
    victim = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert victim.stdout is not None
    for line in victim.stdout:
        if "trial 2, training 3 of 4" in line:  # trial 1's third is done
            break
    time.sleep(0.2)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    kept = {file: file.stat().st_mtime_ns for file in made(small)}
    assert before.items() <= kept.items()
    assert len(kept) >= 6
    half = study.read(study.get(storage.open_storage(small.place.storage, create=False), small.name))
    assert [len(each.seeds) for each in half.confirmations][1] == 3
    assert "lacks trainings: the same command goes on" in " ".join(sentences(half))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert kept.items() <= {file: file.stat().st_mtime_ns for file in made(small)}.items()
    assert len(made(small)) == 9
    whole = study.read(study.get(storage.open_storage(small.place.storage, create=False), small.name))
    assert [len(each.seeds) for each in whole.confirmations] == [0, 4, 4]
    assert re.search(r"1 +accuracy +0\.\d+ +0\.\d+ +0\.\d+ +0\.\d+ to 0\.\d+", done.stdout)
    assert "In the search, these 2 points had accuracy" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Wanted((99,)), "trial is 99; the study 'small' has the trials 0 to"),
        (Wanted((-1,)), "trial is -1; the study 'small' has the trials 0 to"),
    ],
)
def test_what_cannot_be_confirmed_is_said_before_anything_is_trained(
    wanted: Wanted, message: str, small: Searched
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        confirm(small.name, small.place, wanted, SilentListener())


def test_a_training_that_fails_is_said_and_the_others_go_on(small: Searched, confirmed: object) -> None:
    assert confirmed
    listener, score_in = SilentListener(), pipeline.score_in

    def held_out_is_not_finite(precision: str, model: Any, rows: Encoded, **given: Any) -> torch.Tensor:
        logits = score_in(precision, model, rows, **given)
        return logits if len(rows) == len(small.again.prepared.selection) else torch.full_like(logits, torch.nan)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "score_in", held_out_is_not_finite)
        with pytest.raises(UserError, match="no training of the study 'small' succeeded"):
            confirm(small.name, small.place, Wanted((1,), seeds=1, steps=1), listener)
    said = "trial 1, training 1 failed: the recovered model's logits are not finite"
    assert any(said in note for note in listener.notes)


def test_the_full_budget_is_that_of_the_dense_model_unless_said_otherwise(small: Searched) -> None:
    record = small.again.study
    assert full_budget(record, 1, rows=200).steps == round(200 / 32 * 2)
    assert full_budget(record, 1, rows=200, epochs=4).steps == 25
    assert full_budget(record, 1, rows=2).steps == record.definition.recovery.steps  # never fewer than the search's
    assert full_budget(record, 1, rows=200, steps=1).steps == 1
    assert full_budget(record, 1, rows=200).learning_rate == record.definition.recovery.learning_rate


def test_points_are_spread_over_the_sizes_of_the_front(small: Searched) -> None:
    from study_cases import synthetic

    from search.analysis.front import front

    assert small
    record = synthetic(200)
    whole = spread(record, front(record), None)
    shares = [record.records[each.trial].values["parameters"] for each in whole]
    assert shares == sorted(shares, reverse=True)
    assert [each.role for each in whole].count("dense") == 0
    three = spread(record, front(record), 3)
    assert [three[0], three[-1]] == [whole[0], whole[-1]]
    assert len(three) == 3
    assert len(spread(record, front(record), 1)) == 1


def test_the_comparison_of_a_quantity_that_was_not_measured(confirmed: tuple[StudyRecord, list[str]]) -> None:
    assert compare(confirmed[0], confirmed[0].confirmations[0], "nothing") is None
    assert json.dumps(confirmed[0].confirmations[0].quantities)

import copy
import io
import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from noisy_fronts import record_of as noisy_record
from rich.console import Console

from search.analysis.quantities import quantity, short
from search.analysis.standing import standings
from search.analysis.table import frame, front_frame, points, render_front
from search.analysis.trial import render_trial
from search.definition import Definition
from search.plan import Plan, Shape, encoder_parameters, total_parameters
from search.records import ObjectiveInfo, Record, StudyRecord

SHAPE = Shape(
    layers=6, heads=12, head_size=32, hidden=384, neurons=1536, vocabulary=30522, positions=512, token_types=2, labels=2
)
DEEP = Shape(
    layers=24,
    heads=16,
    head_size=64,
    hidden=1024,
    neurons=4096,
    vocabulary=30522,
    positions=512,
    token_types=2,
    labels=2,
)
OBJECTIVES = (
    ObjectiveInfo("accuracy", "", "maximize"),
    ObjectiveInfo("parameters", "", "minimize"),
    ObjectiveInfo("latency_ms", "ms", "minimize"),
    ObjectiveInfo("energy_mj", "mJ", "minimize"),
)
CUT = Plan(heads=(12, 12, 9, 7, 3, 0), neurons=(1536, 1536, 1024, 512, 100, 0))


def record_of(trial, accuracy, plan, shape=SHAPE, **fields):
    size = total_parameters(plan, shape)
    values = {"accuracy": accuracy, "parameters": float(size), "latency_ms": size / 1e6, "energy_mj": size / 1e5}
    return Record(trial, "complete", plan=plan, values=values, **fields)


def study_of(*records, objectives=OBJECTIVES, shape=SHAPE):
    return StudyRecord("study", Definition(name="study", data="data.csv"), objectives, shape, records)


@pytest.fixture
def study():
    dense = record_of(0, 0.8, Plan.dense(SHAPE), role="dense")
    ladder = record_of(1, 0.82, CUT, role="ladder")
    smaller = record_of(2, 0.6, Plan((1,) * 6, (64,) * 6))
    return study_of(dense, ladder, smaller, Record(3, "failed", failure="the loss became [red]NaN[/red]"))


def text_of(renderable, width=100):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    return console.file.getvalue()


def test_the_frame_has_one_row_per_point_with_units_in_the_names(study):
    frame = front_frame(study)
    assert list(frame.columns) == [
        *("trial", "role", "accuracy", "parameters", "latency_ms", "energy_mj"),
        *(
            "kept",
            "encoder_share",
            "encoder_parameters",
            "nondominated_probability",
            "like_cheaper",
            "heads",
            "neurons",
        ),
    ]
    assert frame["trial"].tolist() == [1, 2]  # the dense model is dominated by trial 1
    first = frame.iloc[0]
    assert first["heads"] == "12 12 9 7 3 0"
    assert first["neurons"] == "1536 1536 1024 512 100 0"
    assert first["role"] == "ladder"
    assert first["kept"] == pytest.approx(0.82 / 0.8)
    assert first["parameters"] == total_parameters(CUT, SHAPE)
    assert first["encoder_parameters"] == encoder_parameters(CUT, SHAPE)
    assert first["encoder_share"] == encoder_parameters(CUT, SHAPE) / encoder_parameters(Plan.dense(SHAPE), SHAPE)


def test_the_frame_survives_csv(study):
    frame = front_frame(study)
    pd.testing.assert_frame_equal(
        pd.read_csv(io.StringIO(frame.to_csv(index=False)), dtype={"like_cheaper": "Int64"}), frame
    )


def test_an_empty_front_keeps_its_columns():
    assert list(front_frame(study_of()).columns) == list(front_frame(study_of(record_of(0, 0.8, CUT))).columns)
    assert len(front_frame(study_of())) == 0
    assert points(study_of()) == []


def test_kept_is_missing_without_a_dense_trial_or_where_its_metric_is_zero():
    alone = record_of(1, 0.7, CUT)
    assert math.isnan(front_frame(study_of(alone))["kept"].item())
    zero = record_of(0, 0.0, Plan.dense(SHAPE), role="dense")
    assert points(study_of(zero, alone))[0]["kept"] is None


def test_points_are_json_with_whole_sizes_and_null_for_what_was_not_measured():
    objectives = (OBJECTIVES[0], OBJECTIVES[1], ObjectiveInfo("flash_kb", "kB", "minimize"))
    record = record_of(4, 0.7, CUT)
    values = {"accuracy": 0.7, "parameters": 1234567.0, "flash_kb": 3.5}
    odd = {"latency_ms": {"value": math.nan, "unit": "ms"}}
    record = Record(4, "complete", plan=CUT, values=values, quantities=odd)
    (point,) = points(study_of(record, objectives=objectives))
    assert json.loads(json.dumps(point, allow_nan=False)) == {
        "trial": 4,
        "accuracy": 0.7,
        "encoder_share": pytest.approx(5_751_940 / 10_646_784),  # by hand
        "parameters": 1234567,
        "latency_ms": None,
        "energy_mj": None,
        "flash_kb": 3.5,
        "kept": None,
        "nondominated_probability": 1.0,
        "like_cheaper": None,
        "role": "search",
    }
    assert isinstance(point["parameters"], int)


def test_what_was_measured_goes_before_what_is_counted():
    measured = {"encoder_share": {"value": 0.25, "unit": ""}}
    record = Record(0, "complete", plan=CUT, quantities=measured)
    assert quantity(study_of(), record, "encoder_share") == 0.25
    assert quantity(study_of(), Record(0, "complete", plan=CUT), "encoder_parameters") == encoder_parameters(CUT, SHAPE)
    assert quantity(study_of(), Record(0, "waiting"), "encoder_share") is None
    assert quantity(study_of(), Record(0, "complete", plan=CUT), "latency_ms") is None


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("parameters", 12_345_678, "12.3 M"),
        ("parameters", 999, "999"),
        ("encoder_parameters", 45_600, "45.6 k"),
        ("macs", 2_500_000_000, "2.5 G"),
        ("encoder_share", 0.6123, "61.2 %"),
        ("kept", 1.0, "100.0 %"),
        ("accuracy", 0.83333, "0.8333"),
        ("latency_ms", 4.56789, "4.568"),
        ("latency_ms", 9999.96, "10000"),
        ("energy_mj", 12345.6, "12346"),
        ("own", 1e-7, "1e-07"),
        ("own", None, "-"),
    ],
)
def test_narrow_columns_show_about_four_digits(name, value, text):
    assert short(name, value) == text


def test_the_dense_row_comes_first_and_once_though_it_is_dominated(study):
    lines = [line.split() for line in text_of(render_front(study), width=120).splitlines()]
    rows = [line for line in lines if line and line[0].isdigit()]
    assert [row[:2] for row in rows] == [["0", "dense"], ["1", "ladder"], ["2", "0.6000"]]
    assert rows[0][2:] == ["0.8000", "22.7", "M", "22.71", "227.1", "100.0", "%", "100.0", "%", "-", "12x6", "24x6"]
    assert rows[1][-11] == "1.00"
    assert rows[1][-10:] == ["12x2", "9", "7", "3", "0", "24x2", "16", "8", "2", "0"]


def test_the_dense_row_is_not_repeated_where_it_is_on_the_front():
    dense = record_of(0, 0.9, Plan.dense(SHAPE), role="dense")
    shown = text_of(render_front(study_of(dense, record_of(1, 0.8, CUT))))
    assert shown.count("dense") == 1
    assert "2 points" in shown


def test_headers_show_each_unit_once(study):
    shown = text_of(render_front(study))
    assert "latency_ms" not in shown
    assert "mJ" in shown
    assert "neurons / 64" in shown


OWN = (
    ObjectiveInfo("sentences_per_second_and_core", "1/s", "maximize"),
    ObjectiveInfo("expected_calibration", "", "minimize"),
)


@pytest.mark.parametrize("shape", [SHAPE, DEEP])
@pytest.mark.parametrize("own", [(), OWN])
def test_the_front_fits_a_hundred_columns(shape, own):
    plan = Plan(tuple(10 + n % 2 for n in range(shape.layers)), tuple(1000 + n for n in range(shape.layers)))
    records = [
        record_of(0, 0.9, Plan.dense(shape), shape, role="dense"),
        record_of(17, 0.8, plan, shape, role="ladder"),
    ]
    for record in records:
        record.values.update({objective.name: 12345.678 for objective in own})
    study = study_of(*records, objectives=(*OBJECTIVES, *own), shape=shape)
    wide = text_of(render_front(study), width=400).splitlines()
    shown = text_of(render_front(study)).splitlines()
    assert max(len(line.rstrip()) for line in shown) <= 100
    words = [word for line in wide[4:6] for word in line.split()]
    assert sorted(words) == sorted(word for line in shown for word in line.split() if word in words)
    assert "…" not in "".join(shown)


def test_an_empty_study_renders():
    assert "0 points" in text_of(render_front(study_of()))


def test_show_tells_the_plan_the_quantities_and_the_conditions():
    record = Record(
        5,
        "complete",
        plan=CUT,
        values={"accuracy": 0.8, "parameters": 1234567.0, "latency_ms": 4.5, "energy_mj": 2.0},
        quantities={
            "latency_ms": {
                "value": 4.5,
                "unit": "ms",
                "source": "eager torch",
                "low": 4.25,
                "high": 5.0,
                "samples": 20,
            },
            "energy_mj": {"value": 2.0, "unit": "mJ", "source": "model", "samples": 1},
            "macs": {"value": 987654321.0, "unit": "MACs", "source": "closed form"},
        },
        violations={"parameters": -5000.0, "latency_ms": 1.5},
        feasible=False,
        seconds={"cut": 0.25, "recover": 12.5},
        seed=77,
        answered_from=2,
        conditions={"device": "cpu (CPU)", "threads": 2},
    )
    shown = text_of(render_trial(study_of(), record))
    words = [" ".join(line.split()) for line in shown.splitlines()]
    assert "Trial 5 of study study: complete, search" in words
    assert "answered from trial 2, whose plan is the same" in words
    assert "seed: 77" in words
    assert "0 12 of 12 1536 of 1536" in words
    assert "5 0 of 12 0 of 1536" in words
    assert "all 43 of 72 4708 of 9216" in words
    assert "latency_ms * 4.5 ms eager torch quartiles 4.25 to 5, 20 samples" in words
    assert "energy_mj * 2 mJ model" in words
    assert "parameters * 1,234,567" in words
    assert "macs 987,654,321 MACs closed form" in words
    assert "infeasible: it can never enter the front" in words
    assert "parameters is within its bound by 5.0 k" in words
    assert "latency_ms misses its bound by 1.5" in words
    assert "recover 12.500" in words
    assert "device cpu (CPU)" in words


def test_show_leaves_out_what_a_failed_trial_does_not_have(study):
    shown = text_of(render_trial(study, study.records[3]))
    assert shown.splitlines() == ["Trial 3 of study study: failed, search", "failed: the loss became [red]NaN[/red]"]


def test_a_feasible_trial_says_so(study):
    assert "\nfeasible" in text_of(render_trial(study, study.records[1]))


MARKUP = "[bold]x[/bold] [/] [link=file:///etc]y :smile:"


def test_no_text_of_the_user_is_read_as_markup():
    record = Record(
        1,
        "failed",
        quantities={MARKUP: {"value": 1.0, "unit": MARKUP, "source": MARKUP}},
        violations={MARKUP: 1.0},
        seconds={MARKUP: 1.0},
        role=MARKUP,
        failure=MARKUP,
        conditions={MARKUP: MARKUP},
    )
    shown = text_of(render_trial(study_of(), record), width=400)
    assert shown.count(MARKUP) == 9


def test_no_name_of_the_user_in_the_front_is_read_as_markup():
    own = ObjectiveInfo(MARKUP, "", "maximize")
    record = Record(1, "complete", values={MARKUP: 1.0}, role=MARKUP)
    assert text_of(render_front(study_of(record, objectives=(own,))), width=400).count(MARKUP) == 2


def test_nothing_changes_the_study(study):
    before = copy.deepcopy(study)
    front_frame(study), points(study), text_of(render_front(study)), text_of(render_trial(study, study.records[1]))
    assert study == before


def test_the_whole_study_as_a_table_with_units(study, tmp_path):
    memory = {"memory": {"value": 7.0, "unit": "MB"}}
    timed = {"latency_ms": {"value": 9.0, "low": 8.0, "high": 10.0}}
    record = replace(study.records[1], quantities={**memory, **timed}, seconds={"cut": 1.0, "score": 2.0}, energy_j=5.0)
    objectives = (*study.objectives, ObjectiveInfo("memory", "MB", "minimize"))
    whole = frame(replace(study, objectives=objectives, records=(study.records[0], record, *study.records[2:])))
    assert whole["trial"].tolist() == [0, 1, 2, 3]
    assert whole["state"].tolist() == ["complete", "complete", "complete", "failed"]
    assert whole["on_front"].tolist() == [False, False, False, False]  # none has measured the memory as an objective
    assert whole["memory [MB]"][1] == 7.0
    assert whole[["latency_ms_low", "latency_ms_high"]].loc[1].tolist() == [8.0, 10.0]
    assert whole["seconds"][1] == 3.0
    assert whole["energy_j"][1] == 5.0
    assert whole["failure"][3] == "the loss became [red]NaN[/red]"
    assert whole["parameters"].dtype == "Int64"
    assert math.isnan(whole["latency_ms"][3])
    assert frame(study)["on_front"].tolist() == [False, True, True, False]
    whole.to_parquet(tmp_path / "study.parquet", index=False)
    assert pd.read_parquet(tmp_path / "study.parquet")["heads"][1] == "12 12 9 7 3 0"


def test_show_tells_interval_ratio_and_warning():
    measured = {
        "value": 4.0, "unit": "ms", "source": "eager torch", "low": 3.9, "high": 4.2, "samples": 20,
        "interval": [3.95, 4.1], "details": {"ratio": 0.4321}, "warning": "latency_ms: [red]busy[/red]",
    }  # fmt: skip
    record = Record(3, "complete", quantities={"latency_ms": measured}, values={"latency_ms": 4.0})
    text = " ".join(text_of(render_trial(study_of(record), record), width=200).split())
    assert "quartiles 3.9 to 4.2, 95 % interval 3.95 to 4.1, 20 samples, 0.432 of the dense model beside it" in text
    assert "warning: latency_ms: [red]busy[/red]" in text


def test_the_front_says_how_sure_it_is_and_what_the_marks_mean():
    """Trials 1 and 2 differ in 8 and 4 of 1000 sentences, and 2 is smaller."""
    right = np.ones((3, 1000))
    right[0, 100:] = 0
    right[1, :60], right[1, 60:64] = 0, 0
    right[2, 4:72] = 0
    dense, larger, smaller = (noisy_record(n, each, parameters=3e6 - 1e6 * n) for n, each in enumerate(right))
    study = study_of(replace(dense, role="dense"), larger, smaller, objectives=OBJECTIVES[:2])
    found = standings(study)
    assert 0.7 < found[1].probability < 0.95
    shown = " ".join(text_of(render_front(study), width=200).split())
    assert f"{found[1].probability:.2f} ~2" in shown
    assert "~2: not distinguishable from trial 2, which is better in a cost and worse in nothing (p = 0.95)" in shown
    assert "hypervolume 0." in shown
    assert "No trial kept its answers" not in shown
    by_trial = front_frame(study).set_index("trial")
    assert by_trial["nondominated_probability"].to_dict() == {n: each.probability for n, each in found.items()}
    assert by_trial["like_cheaper"].dropna().to_dict() == {1: 2}
    whole = frame(study).set_index("trial")
    assert whole["like_cheaper"].dropna().to_dict() == {1: 2}
    assert math.isnan(whole["nondominated_probability"][0])  # the dense model is beaten here
    assert [(p["trial"], p["like_cheaper"]) for p in points(study)] == [(1, 2), (2, None)]
    old = replace(study, records=tuple(replace(record, answers=None) for record in study.records))
    assert "No trial kept its answers sentence by sentence" in " ".join(text_of(render_front(old), width=200).split())

"""The report as text: what is in it, what must never be in it, and studies of every sort."""

import base64
import copy
import hashlib
import io
import json
import math
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from datetime import date
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console
from study_cases import NASTY, OBJECTIVES, synthetic

from search.analysis.figures import kinds
from search.analysis.front import front
from search.analysis.note import render_note
from search.analysis.pick import pick
from search.analysis.plots import plots
from search.analysis.readable import trial_attributes
from search.analysis.report import render_report
from search.analysis.standing import standings
from search.analysis.stories import about, conditions
from search.analysis.table import frame, front_frame, points
from search.analysis.trial import render_trial
from search.analysis.volume_interval import final_interval
from search.errors import UserError
from search.plan import Shape
from search.records import ObjectiveInfo, Record

ROOT = Path(__file__).parents[2]
DAY = date(2026, 1, 2)


class Page(HTMLParser):
    """What a browser would make of a page: elements with their attributes, scripts, and the text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.scripts, self.text, self._inside = [], [], "", None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else None
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        if tag == self._inside:
            self._inside = None

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside is None:
            self.text += data

    @property
    def data(self):
        return json.loads(self.scripts[0])


def check(study):
    """Whatever the study: front, tables and report answer, and the page holds nothing but what it should."""
    before = copy.deepcopy(study)
    members = front(study)
    assert len(front_frame(study)) == len(points(study)) == len(members)
    assert len(frame(study)) == len(study.records)
    if any(r.state == "complete" and r.feasible for r in study.records) and members:
        assert pick(study).on_front
        assert pick(study, knee=True).on_front
    else:
        with pytest.raises(UserError, match="no trial to choose from yet"):
            pick(study)
    for record in study.records[:: max(1, len(study.records) // 20)]:
        shown = Console(width=120, file=io.StringIO())
        shown.print(render_trial(study, record))
        assert f"Trial {record.trial} of study" in shown.file.getvalue()
        assert all(isinstance(value, str | int | float) for value in trial_attributes(study, record).values())
    note = render_note(study, storage="sqlite:///study.db")
    assert "<" not in note.replace("\\<", "").partition("\n```")[0]
    text = render_report(study, written=DAY)
    page = Page(text)
    assert [tag for tag, _ in page.elements].count("script") == 3
    assert not {"img", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.elements}
    for _tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith(("#", "data:,"))
    assert study.name in page.text
    assert page.data["study"] == study.name
    assert sum(page.data["front"]) == len(members)
    assert study == before
    return page


def test_what_the_report_says():
    page = check(synthetic(120))
    for part in (
        "trials complete", "written on 2026-01-02", "Dense model", "Points on the front", "Knee of the front",
        "6 layers of 12 heads and 1,536 neurons", "latency_ms at most 140", "95 % interval of accuracy on 600 rows",
        "quartiles of the repeated measurements of latency_ms and energy_mj", "permutation importance", "Breiman",
        "the loss is not finite", "latency_ms misses its bound by", "Energy: ", "nsga2, seed 0", "cpu (CPU)",
        "In the smaller half", "paretobert pick synthetic --knee", "selection split",
    ):  # fmt: skip
        assert part in page.text, part
    figures = page.data["figures"]
    assert [name for name in figures if name.startswith("scatter")] == [f"scatter-{n}" for n in range(6)]
    assert {"layers-heads", "layers-neurons", "plot-hypervolume", "plot-importance", "plot-time"} <= set(figures)
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert set(figures) <= ids


def test_the_report_says_how_sure_each_point_of_the_front_is():
    study = synthetic(40)
    page = check(study)
    found = standings(study)
    expected = {str(trial): [round(each.probability, 3), each.like] for trial, each in found.items()}
    assert page.data["sure"] == expected
    like = sum(each.like is not None for each in found.values())
    assert f"{like} of {len(found)} cannot be told from a cheaper point" in page.text
    assert "No trial kept its answers sentence by sentence" in page.text
    low, high = final_interval(study)
    assert f"95 % interval {low:.4f} to {high:.4f}" in page.text


@pytest.mark.parametrize(("last", "kind"), [(0, "uniform"), (1, "uniform"), (2, "tilted")])
def test_a_ladder_plan_is_uniform_though_its_last_layer_alone_keeps_a_head(last, kind):
    study = synthetic(120)
    rung = next(record for record in study.records if record.role == "ladder" and record.feasible)
    plan = replace(rung.plan, heads=(0,) * (len(rung.plan.heads) - 1) + (last,))
    records = tuple(replace(rung, plan=plan) if record is rung else record for record in study.records)
    figure = check(replace(study, records=records)).data["figures"]["scatter-1"]
    (trace,) = [trace for trace in figure["data"] if trace.get("meta") == kind]
    assert rung.trial in trace["customdata"]


def test_the_pictures_mark_the_dense_model_the_ladder_the_front_and_the_noise():
    study = synthetic(120)
    figure = check(study).data["figures"]["scatter-1"]
    traces = {trace.get("meta"): trace for trace in figure["data"]}
    assert list(traces) == ["line", "infeasible", "dominated", "tilted", "uniform", "front", "dense"]
    assert traces["dense"]["customdata"] == [0]
    assert traces["uniform"]["customdata"] == [r.trial for r in study.records if r.role == "ladder" and r.feasible]
    assert set(traces["front"]["customdata"]) <= {record.trial for record in front(study)}
    record = study.records[traces["front"]["customdata"][0]]
    assert traces["front"]["error_x"]["arrayminus"][0] == pytest.approx(0.03 * record.values["latency_ms"], rel=1e-4)
    p, n, z = record.values["accuracy"], 600, 1.959964
    wilson_high = (p + z * z / 2 / n + z * math.sqrt(p * (1 - p) / n + (z / 2 / n) ** 2)) / (1 + z * z / n)
    assert traces["front"]["error_y"]["array"][0] == pytest.approx(wilson_high - p, rel=1e-4)
    assert "error_y" not in traces["dominated"]
    assert figure["layout"]["xaxis"]["title"]["text"] == "latency_ms (less is better)"


def test_the_page_may_run_its_two_scripts_and_load_nothing():
    page = check(synthetic(8))
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in page.scripts[1:]]
    assert policy.startswith("default-src 'none'; script-src ")
    assert re.findall(r"'sha256-([^']+)'", policy) == [hashes[1], hashes[0]]
    assert "unsafe-eval" not in policy
    assert "\r" not in "".join(page.scripts)


@pytest.mark.parametrize("trials", [0, 1, 2, 3, 41])
def test_studies_of_few_trials(trials):
    page = check(synthetic(trials))
    assert len(page.data["trial"]) <= trials


def test_a_study_whose_trials_all_failed_or_run():
    study = synthetic(9)
    states = ("failed", "running", "waiting")
    records = tuple(
        Record(r.trial, states[r.trial % 3], failure=NASTY if r.trial % 3 == 0 else None) for r in study.records
    )
    page = check(replace(study, records=records))
    assert NASTY in page.text
    assert "No trial is on the front yet" in page.text


def test_a_study_whose_trials_are_all_infeasible():
    study = synthetic(60)
    records = tuple(replace(r, feasible=False, violations={"latency_ms": 1.5}) for r in study.records)
    page = check(replace(study, records=records))
    assert "latency_ms misses its bound by 1.5 to 1.5" in page.text
    assert "No trial is on the front yet" in page.text
    assert kinds(study, records)[0] == "dense"
    outside = replace(records[0], violations={"space": 1.0})
    page = check(replace(study, records=(outside, *records[1:])))
    assert "the dense model lies outside the study's space" in page.text
    assert "space misses" not in page.text


def test_a_study_whose_trials_are_all_the_same():
    study = synthetic(50)
    records = tuple(replace(study.records[3], trial=r.trial, role=r.role) for r in study.records)
    page = check(replace(study, records=records))
    assert sum(page.data["front"]) == 50


def test_a_study_without_its_dense_model():
    study = synthetic(50)
    page = check(replace(study, records=study.records[1:]))
    assert "There is no hypervolume yet" in page.text
    assert "Dense model" not in page.text


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_no_numbers(bad):
    study = synthetic(60)
    records = []
    for record in study.records:
        worse = dict.fromkeys(record.values, bad) if record.trial % 3 == 1 else record.values
        quantities = {
            name: {**measured, **({"low": bad, "high": bad, "value": bad} if record.trial % 4 == 1 else {})}
            for name, measured in record.quantities.items()
        }
        ratios = dict.fromkeys(record.ratios, bad) if record.trial % 5 == 1 else record.ratios
        records.append(
            replace(
                record, values=worse, quantities=quantities, ratios=ratios,
                violations={**record.violations, "energy_mj": -abs(bad)}, seconds={**record.seconds, "score": bad},
            )
        )  # fmt: skip
    page = check(replace(study, records=tuple(records)))
    assert "Not a number: accuracy" in page.text
    assert "nan" not in page.scripts[0]
    assert "Infinity" not in page.scripts[0]


def test_names_are_escaped_wherever_they_stand():
    long = "x" * 200
    objectives = (
        OBJECTIVES[0], ObjectiveInfo(NASTY, NASTY, "minimize"), ObjectiveInfo(long, "", "minimize"),
    )  # fmt: skip
    study = synthetic(60, objectives=objectives, name=NASTY + long, data=NASTY, model=long)
    records = tuple(
        replace(
            r,
            ratios={f"{NASTY}{name}": ratio for name, ratio in r.ratios.items()},
            violations={NASTY: 1.0} if r.trial % 7 == 6 else {},
            feasible=r.trial % 7 != 6,
            failure=NASTY if r.state == "failed" else None,
            seconds={NASTY: 1.0},
            conditions={NASTY: NASTY},
            quantities={**r.quantities, NASTY: {"value": 1.0, "source": NASTY}},
        )
        for r in study.records
    )
    page = check(replace(study, records=records))
    assert long in page.text
    for figure in page.data["figures"].values():  # plotly reads tags in what it writes
        for text in _texts(figure):
            assert "<script" not in text
            assert "<img" not in text


def test_other_numbers_of_objectives():
    one = synthetic(30, objectives=OBJECTIVES[:1])
    assert next(iter(check(one).data["figures"])) == "scatter-0"
    five = synthetic(30, objectives=(*OBJECTIVES, ObjectiveInfo("memory", "MB", "minimize")))
    assert sum(name.startswith("scatter") for name in check(five).data["figures"]) == 10


def test_a_deep_model():
    shape = Shape(24, 16, 64, 1024, 4096, 30522, 512, 2, 2)
    page = check(synthetic(50, shape=shape))
    assert len(page.data["figures"]["plot-importance"]["data"][0]["y"]) == 48


def test_ten_thousand_trials_are_drawn_thinned_and_listed_whole():
    study = synthetic(10_000)
    page = check(study)
    traces = {trace.get("meta"): trace for trace in page.data["figures"]["scatter-0"]["data"]}
    assert len(traces["dominated"]["x"]) == 1500
    assert len(page.data["trial"]) == len(study.complete)
    assert "dominated trials 1,500 are drawn, evenly taken" in page.text
    assert sum(len(figure.to_json()) for figure in plots(study, with_importance=False).values()) < 400_000


def test_a_thousand_trials_stay_below_six_megabytes():
    assert len(render_report(synthetic(1000)).encode()) < 6e6


def test_the_page_is_the_same_each_time():
    study = synthetic(60)
    assert render_report(study, written=DAY) == render_report(study, written=DAY)


def test_an_installed_wheel_holds_the_page(tmp_path):
    """An editable install finds files that a wheel may lack; so does a build in a tree that holds an earlier one."""
    source = tmp_path / "source"
    for folder in ("search", "objectives"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path,
        source,
    ]
    subprocess.run(build, check=True, timeout=120)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert {f"search/analysis/page/page.{kind}" for kind in ("html", "css", "js")} <= set(names)


def _texts(value):
    """All strings in nested lists and dicts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def test_slices_are_said_to_be_scored_without_training():
    study = synthetic(10)
    told = dict(about(study))["Recovery"]
    assert told.startswith(f"cut from the dense model, {study.definition.recovery.steps} steps of 32 rows at ")
    recovery = study.definition.recovery.model_copy(update={"start": "supernet", "steps": 0})
    sliced = replace(study, definition=study.definition.model_copy(update={"recovery": recovery}))
    assert dict(about(sliced))["Recovery"] == "cut from the super-network, scored without training"


@pytest.mark.parametrize(
    ("measuring", "told"),
    [
        ({}, "median of at least 6 pairs with the dense model, after 3 to warm up"),
        (
            {"figure": "absolute"},
            "median of all passes of at least 6 turns, beside the dense model, after 3 to warm up",
        ),
        ({"reference": False}, "median of at least 11 passes, after 3 to warm up"),
    ],
)
def test_the_conditions_say_what_a_latency_is_the_median_of(measuring, told):
    study = synthetic(10)
    latency = study.definition.latency.model_copy(update={"repeats": 11, "warmup": 3})
    how = study.definition.measuring.model_copy(update=measuring)
    definition = study.definition.model_copy(update={"latency": latency, "measuring": how})
    assert dict(conditions(replace(study, definition=definition)))["Latency, energy and MACs"].endswith(told)

"""What a search used, and after how many inferences it has paid for itself."""

import io
import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from study_cases import NASTY, SHAPE, synthetic

from objectives import inference, pairs
from search.analysis.ledger import NEVER, Energy, ledger, pays_after
from search.analysis.ledger_view import as_values, render_ledger, trial_lines
from search.analysis.modelled import MIX_BATCHES, TURN_MS
from search.analysis.report import render_report
from search.analysis.trial import render_trial
from search.definition import Definition
from search.plan import Plan
from search.records import LOST, ObjectiveInfo, Record, StudyRecord

OBJECTIVES = (ObjectiveInfo("accuracy", "", "maximize"), ObjectiveInfo("energy_mj", "mJ", "minimize"))
DEFINITION = Definition.model_validate(
    {
        "name": "book",
        "data": "x.csv",
        "objectives": ["metric", "energy_mj"],
        "latency": {"batch": 32, "tokens": 32, "warmup": 3},
        "latencies": {"single": {"batch": 1}},
        "recovery": {"steps": 100, "batch_size": 16},
        "teacher": {"epochs": 2},
        "importance": {"rows": 64},
    }
)


def record(
    trial: int,
    accuracy: float,
    energy_mj: float,
    latency_ms: float,
    *,
    source: str = "nvml",
    single_ms: float | None = None,
    **given: Any,
) -> Record:
    quantities = {
        "accuracy": {"value": accuracy, "unit": "", "source": "selection split", "samples": 200},
        "energy_mj": {"value": energy_mj, "unit": "mJ", "source": source},
        "latency_ms": {"value": latency_ms, "unit": "ms", "source": "eager", "samples": 20, "details": {}},
    }
    if single_ms is not None:
        quantities["latency_ms.single"] = {"value": single_ms, "unit": "ms", "source": "eager", "samples": 20}
    values = {"accuracy": accuracy, "energy_mj": energy_mj}
    plan = Plan.dense(SHAPE) if given.get("role") == "dense" else Plan((6,) * 6, (64 * trial,) * 6)
    return Record(trial, "complete", plan=plan, values=values, quantities=quantities, **given)


def study(*records: Record, **given: Any) -> StudyRecord:
    return StudyRecord("book", DEFINITION, OBJECTIVES, SHAPE, records, **given)


COUNTED = study(
    record(0, 0.9, 100.0, 320.0, single_ms=10.0, role="dense", lasted_s=20.0, energy_j=100.0, counter="nvml"),
    record(1, 0.8, 60.0, 160.0, single_ms=10.0, lasted_s=180.0, energy_j=500.0, counter="nvml"),
    record(2, 0.95, 120.0, 400.0, lasted_s=100.0, energy_j=150.0, counter="nvml"),
    Record(3, "failed", failure=f"{LOST}: x", lasted_s=40.0, energy_j=130.0, counter="nvml"),
    Record(4, "failed", failure="the loss is not finite", lasted_s=60.0, energy_j=120.0, counter="nvml"),
    Record(5, "waiting"),
    preparation={"teacher": 90.0, "logits": 10.0},
    preparation_j={"teacher": (900.0, "nvml"), "logits": (100.0, "nvml")},
)
"""900 + 100 + 100 + 500 + 150 + 130 + 120 = 2,000 J in 90 + 10 + 20 + 180 + 100 + 40 + 60 = 500 s."""


def shown(renderable: object, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_a_search_that_was_added_up_by_hand() -> None:
    book = ledger(COUNTED)
    assert book.seconds == 500.0
    assert book.energy == book.counted == Energy(2000.0, "nvml", 0)
    assert book.modelled is None
    assert book.untimed == 0
    paid = {each.trial: each for each in book.paybacks}
    assert set(paid) == {1, 2}  # the dense model saves nothing against itself
    # 40 mJ of 100 saved: 2,000 J / 0.040 J. 160 ms of 320 saved per batch of 32, 5 ms per inference: 500 s / 0.005 s.
    assert (paid[1].saved_mj, paid[1].after_energy) == (40.0, 50_000)
    assert paid[1].saved_ms == {"latency_ms": 5.0, "latency_ms.single": 0.0}
    assert paid[1].after_time == {"latency_ms": 100_000, "latency_ms.single": NEVER}
    assert (paid[2].saved_mj, paid[2].after_energy) == (-20.0, NEVER)
    assert paid[2].after_time == {"latency_ms": NEVER}


def test_2000_j_are_a_fifth_of_a_gram_at_360_g_per_kwh_everywhere() -> None:
    text = " ".join(shown(render_ledger(COUNTED, 360.0)).split())
    assert "0.2 g CO2-eq (nvml), at 360 g CO2-eq per kWh" in text
    assert as_values(COUNTED, 360.0)["energy"]["counted"]["g_co2eq"] == pytest.approx(0.2)
    assert "0.2 g CO2-eq (nvml)" in render_report(COUNTED, grid=360.0)
    for said in (shown(render_ledger(COUNTED)), render_report(COUNTED), json.dumps(as_values(COUNTED))):
        assert "g CO2-eq" not in said  # never without an intensity that a person gave
    assert as_values(COUNTED)["grid_g_per_kwh"] is None


def test_the_terminal_says_all_of_it() -> None:
    lines = [" ".join(line.split()) for line in shown(render_ledger(COUNTED)).splitlines()]
    for line in (
        "preparation: teacher 1 90.0 s 900 J",
        "trials: complete 3 5.0 min 750 J",
        "trials: worker lost 1 40.0 s 130 J",
        "trials: failed or stopped 1 60.0 s 120 J",
        "all 8.3 min 2,000 J",
        "1 40 50.0 k 5 100.0 k 0 never",
        "2 -20 never -2.5 never not known not known",
    ):
        assert line in lines, "\n".join(lines)
    assert any("up to 20 s or so are missing" in line for line in lines)


def test_show_and_report_say_it_too() -> None:
    said = shown(render_trial(COUNTED, COUNTED.records[1]))
    assert "used: 3.0 min, 500 J (nvml)" in said
    assert "until the search is paid for: 50.0 k in energy (nvml), 100.0 k in time (latency_ms), never in" in said
    assert "used: 40.0 s, 130 J (nvml)" in shown(render_trial(COUNTED, COUNTED.records[3]))
    assert trial_lines(COUNTED, COUNTED.records[5]) == []
    assert not [line for line in trial_lines(COUNTED, COUNTED.records[0]) if "paid" in line]
    page = render_report(COUNTED)
    assert '<td class="words">50.0 k</td>' in page
    assert '<td class="words">2,000 J</td>' in page


def test_json_holds_units_and_no_infinity() -> None:
    values = json.loads(json.dumps(as_values(COUNTED), allow_nan=False))
    assert values["energy"]["counted"] == {"joules": 2000.0, "source": "nvml", "entries_without": 0}
    assert values["seconds"] == 500.0
    assert [point["pays_after_energy"] for point in values["points"]] == ["never", 50_000]
    assert sum(entry["counted_j"] for entry in values["entries"]) == 2000.0


def test_names_from_outside_reach_no_markup() -> None:
    nasty = replace(COUNTED, name=f"[red]{NASTY}", preparation={NASTY: 1.0}, preparation_j={NASTY: (1.0, NASTY)})
    assert "[red]" in shown(render_ledger(nasty), 400)
    assert NASTY not in render_report(nasty)


# --- what cannot be said


def test_cost_and_saving_of_different_sources_are_not_divided() -> None:
    """The workers have counters, and the study's energy is computed: no trial is computed where too little is known."""
    records = [
        replace(each, quantities={**each.quantities, "energy_mj": {**each.quantities["energy_mj"], "source": "rapl"}})
        if each.trial == 1
        else each
        for each in COUNTED.records
    ]
    (first,) = [each for each in ledger(replace(COUNTED, records=tuple(records))).paybacks if each.trial == 1]
    assert (first.saved_mj, first.after_energy) == (None, None)
    modelled = [record(0, 0.9, 2.0, 320.0, source="model", role="dense", energy_j=50.0, counter="nvml")]
    modelled.append(record(1, 0.8, 1.0, 160.0, source="model", energy_j=50.0, counter="nvml"))
    book = ledger(study(*modelled))
    assert book.counted == Energy(100.0, "nvml", 0)
    assert book.energy is None
    assert [each.after_energy for each in book.paybacks] == [None]
    assert "of different sources, which must not be divided" in shown(render_ledger(study(*modelled)))


def test_what_has_no_figure_makes_a_lower_bound_and_says_so() -> None:
    old = Record(6, "failed", failure="x")
    book = ledger(replace(COUNTED, records=(*COUNTED.records, old), preparation_j={}))
    assert book.counted == Energy(1000.0, "nvml", 3)
    assert book.untimed == 1
    said = " ".join(shown(render_ledger(replace(COUNTED, records=(*COUNTED.records, old)), 360.0)).split())
    assert "at least 2,000 J" in said
    assert "Time: 1 trial or artifact has none noted, so the sum is a lower bound" in said
    assert "at least 0.2 g CO2-eq" in said


def test_a_study_of_an_earlier_version_has_the_time_of_its_stages() -> None:
    old = synthetic(12)
    book = ledger(old)
    times = [entry.seconds for entry in book.entries]
    assert times == [sum(each.seconds.values()) if each.seconds else None for each in old.records]
    said = " ".join(shown(render_ledger(old)).split())
    assert "What the preparation took is not known" in said
    assert book.counted is not None
    assert book.counted.source == "a counter"


def test_without_a_dense_model_nothing_pays_and_nothing_breaks() -> None:
    for lone in (study(), study(record(1, 0.8, 60.0, 160.0, lasted_s=1.0))):
        book = ledger(lone)
        assert all(each.after_energy is None and not each.after_time for each in book.paybacks)
        assert shown(render_ledger(lone, 100.0))
        assert as_values(lone)["energy_that_pays"] is None


# --- properties


@given(cost=st.floats(0, 1e12), saving=st.floats(-1e6, 1e6))
def test_it_pays_exactly_when_the_cost_is_saved_and_never_where_nothing_is(cost: float, saving: float) -> None:
    after = pays_after(cost, saving)
    if saving <= 0:
        assert after == NEVER
    elif after != NEVER:
        assert after * saving >= cost * (1 - 1e-9) - 1e-6 * saving
        assert (after - 1) * saving < cost + 1e-6 * saving + 1e-9 * cost


@given(st.lists(st.tuples(st.floats(0.01, 300), st.floats(0.01, 300), st.floats(0, 1)), min_size=1, max_size=6))
def test_no_point_that_saves_nothing_ever_pays(points: list[tuple[float, float, float]]) -> None:
    dense = record(0, 0.5, 100.0, 100.0, role="dense", energy_j=10.0, lasted_s=5.0)
    others = [record(n + 1, accuracy, mj, ms, energy_j=1.0) for n, (mj, ms, accuracy) in enumerate(points)]
    for each in ledger(study(dense, *others)).paybacks:
        mj, ms, _ = points[each.trial - 1]
        assert each.after_energy is not None
        assert (each.after_energy == NEVER) == (mj >= 100.0)
        assert (each.after_time["latency_ms"] == NEVER) == (ms >= 100.0)


# --- by the model


def test_the_model_counts_passes() -> None:
    """2 mJ dense, 1 mJ cut, at 32 tokens; 1,000 training rows of 16 tokens and 200 of 8 to be scored."""
    referred: dict[str, Any] = {"value": 5.0, "unit": "ms", "source": "eager", "samples": 30, "details": {}}
    referred["details"] = {"absolute": 20.0, "reference": 60.0, "pairs": 10.0}
    dense = record(0, 0.9, 2.0, 10.0, source="model", role="dense", seconds={"measure": 1.0, "score": 1.0})
    cut = record(1, 0.8, 1.0, 5.0, source="model", seconds={"recover": 7.0, "score": 1.0}, lasted_s=9.0)
    cut = replace(cut, quantities={**cut.quantities, "latency_ms": referred})
    lost = Record(2, "failed", failure=LOST, lasted_s=10.0)
    answered = replace(cut, trial=3, answered_from=1, seconds={}, lasted_s=0.5)
    book = ledger(
        study(
            *(dense, cut, lost, answered),
            preparation={"tokens": 1.0, "teacher": 60.0, "logits": 5.0, "importance": 5.0},
            rows={"train": (1000, 16.0), "selection": (200, 8.0)},
        )
    )
    found = {entry.name: entry.modelled_j for entry in book.entries}
    # The dense model: 200 rows scored at a quarter of the length, and 3 + 20 batches of 32 timed, 2 mJ each.
    assert found["0"] == pytest.approx((200 / 4 + 23 * 32) * 2e-3)
    # The cut one: 100 steps of 16 rows of half the length, three passes each; ten turns of 50 ms of it and of the dense
    # one, which are three batches of 20 ms and one of 60 ms.
    assert found["1"] == pytest.approx((100 * 16 * 3 / 2 + 200 / 4 + (3 + 30) * 32) * 1e-3 + 10 * 32 * 2e-3)
    assert found["2"] == pytest.approx(10.0 * (found["0"] + found["1"]) / (2.0 + 8.0))
    assert found["3"] == 0.0
    # 2 epochs of 1,000 rows of half the length, three passes; one pass for the logits.
    assert found["teacher"] == pytest.approx(2 * 1000 * 3 / 2 * 2e-3)
    assert found["logits"] == pytest.approx(1000 / 2 * 2e-3)
    assert found["importance"] == pytest.approx(64 * (3 + 6 + 2) / 2 * 2e-3)
    assert found["tokens"] == 0.0
    assert book.energy == book.modelled
    assert book.modelled is not None
    assert (book.modelled.source, book.modelled.missing) == ("model", 0)
    assert book.modelled.joules == pytest.approx(math.fsum(each for each in found.values() if each))
    assert [each.after_energy for each in book.paybacks] == [math.ceil(book.modelled.joules / 1e-3)]
    assert "no electricity bill" in shown(render_ledger(study(dense, cut)))


def test_what_is_deployed_in_less_was_trained_in_fp32() -> None:
    """2 mJ dense and 1 mJ cut in fp32; as they are deployed, half of that."""

    def halved(given: Record) -> Record:
        energy = {"value": given.value("energy_mj") / 2, "unit": "mJ", "source": "model"}
        more = {"energy_mj": {**energy, "details": {"fp32": given.value("energy_mj")}}}
        return replace(given, quantities={**given.quantities, **more}, values={**given.values, "energy_mj": 0.0})

    dense = record(0, 0.9, 2.0, 10.0, source="model", role="dense", seconds={"score": 1.0})
    cut = record(1, 0.8, 1.0, 5.0, source="model", seconds={"recover": 7.0}, ended_at=0.5, rungs=((0.5, 0.7),))
    rows = {"train": (1000, 32.0), "selection": (200, 32.0)}
    book = ledger(study(halved(dense), halved(cut), preparation={"teacher": 60.0}, rows=rows))
    found = {entry.name: entry.modelled_j for entry in book.entries}
    assert found["teacher"] == pytest.approx(2 * 1000 * 3 * 2e-3)
    assert found["0"] == pytest.approx((200 + 23 * 32) * 1e-3)
    assert found["1"] == pytest.approx((50 * 16 * 3 + 256) * 1e-3 + (200 + 23 * 32) * 0.5e-3)


def test_a_pass_over_a_mix_of_lengths_is_eight_batches() -> None:
    assert (MIX_BATCHES, TURN_MS) == (inference.MIX_BATCHES, 1000 * pairs.TURN_S)
    latency = DEFINITION.latency.model_copy(update={"tokens": "selection"})
    definition = DEFINITION.model_copy(update={"latency": latency, "latencies": {}})
    beside: dict[str, Any] = {"value": 5.0, "unit": "ms", "source": "eager", "samples": 30, "details": {}}
    beside["details"] = {"absolute": 1.0, "reference": 4.0, "pairs": 10.0}
    alone = record(0, 0.9, 2.0, 10.0, source="model", role="dense", seconds={"score": 1.0})
    cut = record(1, 0.8, 1.0, 5.0, source="model", seconds={"score": 1.0})
    cut = replace(cut, quantities={**cut.quantities, "latency_ms": beside})
    given = replace(study(alone, cut, rows={"train": (1000, 16.0), "selection": (200, 16.0)}), definition=definition)
    found = {entry.name: entry.modelled_j for entry in ledger(given).entries}
    assert found["0"] == pytest.approx((200 + 23 * 8 * 32) * 2e-3)
    # Turns of 50 ms: seven passes of eight batches of 1 ms, and two of eight of 4 ms.
    assert found["1"] == pytest.approx((200 + (3 + 70) * 8 * 32) * 1e-3 + 20 * 8 * 32 * 2e-3)


def test_a_recovery_that_was_ended_early_took_less() -> None:
    dense = record(0, 0.9, 2.0, 10.0, source="model", role="dense", seconds={"score": 1.0})
    whole = record(1, 0.8, 1.0, 5.0, source="model", seconds={"recover": 7.0})
    ended = replace(whole, trial=2, ended_at=0.25, rungs=((0.25, 0.7),))
    chosen = replace(whole, trial=3, schedule={"steps": 10})
    found = {entry.name: entry.modelled_j or 0.0 for entry in ledger(study(dense, whole, ended, chosen)).entries}
    assert found["1"] - found["2"] == pytest.approx((0.75 * 100 * 16 * 3 - 256) * 1e-3)
    assert found["1"] - found["3"] == pytest.approx(90 * 16 * 3 * 1e-3)

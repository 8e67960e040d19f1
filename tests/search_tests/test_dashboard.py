"""What optuna-dashboard shows of a study beside its trials: note, pictures, readable attributes, files."""

import csv
import importlib
import io
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from engine_cases import DEFINITION, SHAPE, SilentListener, create_in, evaluation_of
from optuna import Study
from optuna_dashboard import get_note, save_note, wsgi
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects
from study_cases import NASTY, OBJECTIVES, synthetic

from search.analysis.note import END, escaped, render_note
from search.analysis.plots import plots
from search.analysis.readable import study_attributes, trial_attributes
from search.arguments import Options
from search.engine import dashboard, proxy, storage, study
from search.engine.presented import OF_STUDY, Downloads, PresentedStorage
from search.engine.publishing import publish
from search.engine.worker import work
from search.plan import Plan

SECRET = "postgresql+psycopg://me:hidden-word@host/db"


def finished_in(opened: Any) -> Study:
    """A finished study in an open storage; one trial is infeasible."""
    made = create_in(opened, DEFINITION)

    def evaluate(plan: Plan, **given: Any) -> Any:
        return evaluation_of(plan, at_most=None if plan == Plan.dense(SHAPE) else 20_000, **given)

    assert work(made, evaluate, SilentListener())
    return made


@pytest.fixture(scope="module", params=["sqlite", "journal", "grpc"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    """A finished study on each of the storages that need no server of their own."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param != "grpc":
        scheme = {"sqlite": "sqlite:///", "journal": "journal:///"}[request.param]
        yield finished_in(storage.open_storage(f"{scheme}{folder}/study.db", create=True))
        return
    pytest.importorskip("grpc", reason="needs the extra proxy")
    ports: list[int] = []
    up, over = threading.Event(), threading.Event()
    storage.open_storage(f"sqlite:///{folder}/study.db", create=True)

    def listening(port: int) -> None:
        ports.append(port)
        up.set()

    serving = threading.Thread(
        target=lambda: proxy.serve(
            f"sqlite:///{folder}/study.db", host="127.0.0.1", port=0, listening=listening, note=print, over=over
        )
    )
    serving.start()
    assert up.wait(60)
    opened = storage.open_storage(f"grpc://127.0.0.1:{ports[0]}", create=True)
    yield finished_in(opened)
    storage.close(opened)
    over.set()
    serving.join(60)


def asked(application: Any, path: str) -> tuple[str, bytes]:
    """Status and body of one request to the dashboard."""
    status: list[str] = []
    environ = {
        "REQUEST_METHOD": "GET", "PATH_INFO": path, "SERVER_NAME": "x", "SERVER_PORT": "1",
        "SERVER_PROTOCOL": "HTTP/1.1", "HTTP_ACCEPT_ENCODING": "", "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(), "wsgi.errors": io.StringIO(),
    }  # fmt: skip
    body = b"".join(application(environ, lambda code, _headers, *_more: status.append(code)))
    return status[0], body


def plots_of(shown: Study) -> dict[str, Any]:
    """The pictures of a study as optuna-dashboard puts them together."""
    found = get_plotly_graph_objects(shown._storage.get_study_system_attrs(shown._study_id))
    return {name: json.loads(text) for name, text in found.items()}


def test_the_note_and_the_pictures_are_what_the_dashboard_reads(finished: Study) -> None:
    assert publish(finished, url=SECRET) > 1
    note = get_note(finished)
    for part in ("## case", "12 of 12 trials complete", "Points on the front", "paretobert work case --storage"):
        assert part in note
    assert "postgresql+psycopg" in note
    assert "hidden-word" not in note
    drawn = plots_of(finished)
    assert {f"paretobert-scatter-{number}" for number in range(6)} < set(drawn)
    first = drawn["paretobert-scatter-0"]
    assert first["layout"]["title"]["text"] == "accuracy against parameters"
    assert first["layout"]["xaxis"]["title"]["text"] == "parameters (less is better)"
    points = {trial for trace in first["data"] for trial in trace.get("customdata", [])}
    assert points == {record.trial for record in study.read(finished).complete if record.answered_from is None}
    assert publish(finished, url=SECRET) == 0  # nothing is new


def test_the_dashboard_shows_short_attributes_and_offers_files(finished: Study, tmp_path: Path) -> None:
    before = [(trial.user_attrs, trial.system_attrs) for trial in finished.get_trials()]
    files = Downloads(tmp_path / "uploads")
    application = wsgi(PresentedStorage(finished._storage, files), artifact_store=files)
    number = finished._study_id
    status, body = asked(application, f"/api/studies/{number}")
    assert status.startswith("200")
    shown = json.loads(body)
    assert shown["objective_names"] == [objective.label for objective in OBJECTIVES]
    texts = {each["key"]: each["value"] for each in shown["user_attrs"]}
    assert texts["Objectives"].startswith("accuracy (more is better)")
    for trial in shown["trials"]:
        record = study.read(finished).records[trial["number"]]
        known = {each["key"]: each["value"] for each in trial["user_attrs"]}
        assert known["heads kept"] == " ".join(map(str, record.plan.heads))
        assert float(known["encoder_share"]) == pytest.approx(record.quantities["encoder_share"]["value"], rel=1e-5)
        assert ("not a candidate" in known) == (not record.feasible)
        assert all(len(text) < 300 and not text.startswith(("{", "[")) for text in known.values())
        file = trial["artifacts"][0]
        path = f"/artifacts/{number}/{trial['trial_id']}/{file['artifact_id']}"
        status, body = asked(application, path)
        assert file["filename"] == f"trial-{record.trial}.json"
        assert json.loads(body)["quantities"] == json.loads(json.dumps(record.quantities))
        assert json.loads(body)["plan"]["heads"] == list(record.plan.heads)
    assert any(not record.feasible for record in study.read(finished).records)
    assert [file["filename"] for file in shown["artifacts"]] == list(OF_STUDY)
    contents = {
        file["filename"]: asked(application, f"/artifacts/{number}/{file['artifact_id']}")[1].decode()
        for file in shown["artifacts"]
    }
    assert len(list(csv.DictReader(io.StringIO(contents["trials.csv"])))) == 12
    assert json.loads(contents["definition.json"])["name"] == "case"
    assert contents["report.html"].startswith("<!doctype html>")
    sortable = {each["key"] for each in shown["union_user_attrs"] if each["sortable"]}
    assert {"encoder_share", "kept", "seconds"} <= sortable
    assert [(trial.user_attrs, trial.system_attrs) for trial in finished.get_trials()] == before  # nothing was written
    assert not (tmp_path / "uploads").exists()


def test_a_study_that_paretobert_did_not_make_is_shown_as_it_is(tmp_path: Path) -> None:
    opened = storage.open_storage(f"sqlite:///{tmp_path}/study.db", create=True)
    foreign = optuna.create_study(study_name="foreign", storage=opened)
    foreign.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    application = wsgi(PresentedStorage(opened, Downloads(tmp_path)), artifact_store=Downloads(tmp_path))
    shown = json.loads(asked(application, f"/api/studies/{foreign._study_id}")[1])
    assert shown["artifacts"] == []
    assert [trial["values"] for trial in shown["trials"]] == [trial.values for trial in foreign.get_trials()]


def test_files_that_a_person_adds_are_kept(tmp_path: Path) -> None:
    files = Downloads(tmp_path / "uploads")
    name, about = files.offer("case/1", "trial-1.json", "application/json", lambda: b"made")
    files.write("a-number", io.BytesIO(b"theirs"))
    with files.open_reader("a-number") as reader:
        assert reader.read() == b"theirs"
    made = json.loads(about)["artifact_id"]
    assert name == f"artifacts:{made}"
    files.remove(made)
    assert files.open_reader(made).read() == b"made"
    files.remove("a-number")
    with pytest.raises(Exception, match="not found"):
        files.open_reader("a-number")


def test_what_a_person_writes_in_the_note_stays(tmp_path: Path) -> None:
    made = create_in(storage.open_storage(f"sqlite:///{tmp_path}/study.db", create=True), DEFINITION)
    publish(made, url="sqlite:///study.db")
    assert "0 of 12 trials complete" in get_note(made)
    save_note(made, f"{get_note(made)}\n\nTry again with *more* steps.\n" + "x" * 5000)
    assert work(made, evaluation_of, SilentListener())
    publish(made, url="sqlite:///study.db")
    assert "12 of 12 trials complete" in get_note(made)
    assert get_note(made).endswith("\n\nTry again with *more* steps.\n" + "x" * 5000)
    save_note(made, "Mine alone.")
    publish(made, url="sqlite:///study.db")
    assert get_note(made) == "Mine alone."


def test_a_page_can_read_the_pictures_while_several_publish(tmp_path: Path) -> None:
    """With Optuna-dashboard's own function, which writes in pieces, it could not."""
    url = f"sqlite:///{tmp_path}/study.db"
    create_in(storage.open_storage(url, create=True), DEFINITION)
    read: list[dict[str, Any]] = []
    failed: list[BaseException] = []

    def publishing() -> None:
        try:
            mine = study.get(storage.open_storage(url, create=False), "case")
            for _ in range(3):
                _overwrite(mine)  # as a publisher would that knows fewer trials
                read.append(plots_of(mine))
                publish(mine, url=url)
                read.append(plots_of(mine))
        except BaseException as error:
            failed.append(error)

    def _overwrite(mine: Study) -> None:
        for name in plots_of(mine):
            mine._storage.set_study_system_attr(mine._study_id, f"dashboard:plot_data:{name}:0", "{}")

    made = study.get(storage.open_storage(url, create=False), "case")
    assert work(made, evaluation_of, SilentListener())
    threads = [threading.Thread(target=publishing) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(read) == 12


def test_publishing_that_fails_is_no_failure_of_the_search(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    running = importlib.import_module("search.run")
    monkeypatch.setattr("search.engine.publishing.publish", lambda *_args, **_kw: 1 / 0)
    running._publish(None, "sqlite:///x", Options.model_construct(artifacts=None), running.make_console())
    assert "were not written (ZeroDivisionError" in capsys.readouterr().out


def test_the_dashboard_publishes_when_it_opens_and_when_there_is_news(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    made = create_in(storage.open_storage(url, create=True), DEFINITION)
    monkeypatch.setattr(dashboard, "REFRESH_S", 0.05)
    over = threading.Event()
    refreshing = threading.Thread(target=dashboard._refresh, args=(url, "case", None, over))
    refreshing.start()
    try:
        assert _soon(lambda: "0 of 12 trials" in get_note(made))
        assert work(made, evaluation_of, SilentListener())
        assert _soon(lambda: "12 of 12 trials" in get_note(made))
        assert _soon(lambda: "paretobert-scatter-0" in plots_of(made))
    finally:
        over.set()
        refreshing.join(60)


def _soon(holds: Any) -> bool:
    return any(holds() or threading.Event().wait(0.1) for _ in range(600))


@pytest.mark.parametrize("trials", [0, 1, 2, 60])
def test_note_pictures_and_attributes_of_studies_of_every_sort(trials: int) -> None:
    long = "x" * 200
    some = synthetic(trials, name=NASTY + long, data=NASTY, model=long)
    infeasible = tuple(replace(record, feasible=False, violations={NASTY: 1.5}) for record in some.records)
    nan = tuple(
        replace(
            record,
            values=dict.fromkeys(record.values, float("nan")),
            quantities={NASTY: {"value": float("nan"), "low": float("nan"), "high": None, "source": NASTY}},
            seconds={NASTY: float("nan")},
            failure=NASTY,
        )
        for record in some.records
    )
    for records in (some.records, infeasible, nan):
        each = replace(some, records=records)
        note = render_note(each, storage=f"sqlite:///{NASTY}")
        assert note.rstrip().endswith(END)
        outside = note.partition("\n```")[0]
        assert "\\<script\\>" in outside
        assert "<script" not in outside.replace("\\<", "")
        json.dumps([figure.to_json() for figure in plots(each, with_importance=records is some.records).values()])
        assert all(isinstance(text, str) for text in study_attributes(each).values())
        for record in each.records:
            for value in trial_attributes(each, record).values():
                assert isinstance(value, str | int | float)
                assert value == value  # not NaN, which is no JSON


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a_b *c* `d` [e](f) <g> ~h~ | $i$ & \\", r"a\_b \*c\* \`d\` \[e\](f) \<g\> \~h\~ \| \$i\$ \& \\"),
        ("http://host and www.host and me@host", r"http\://host and www\.host and me\@host"),
        ("two\nlines", "two lines"),
        ("x" * 700, "x" * 599 + "…"),
    ],
)
def test_what_a_user_chose_reads_as_itself(text: str, shown: str) -> None:
    assert escaped(text) == shown

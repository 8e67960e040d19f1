"""The same worker many times on a Ray cluster, whose scheduler places, restarts and ends them.

    driver (this process)                     Ray                          nodes of the cluster
    place ──► workers × the same task ──► a free GPU, or CPUs ──► worker ◄──► study database, artifact store
      ▲                                        ▲    process or node is gone: the task runs again elsewhere
      │◄── where each worker runs, how it ended ┘
    Ctrl-C ──► ray.cancel ──► Ctrl-C in every worker: the first drains it, the second makes it hand its trial back

Nothing of the search passes through Ray: workers meet in the study database. Its URL, which may hold a password,
travels as a task's argument: command lines, names, runtime environments and Ray's logs do not show it.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import FrameType, ModuleType
from typing import Any
from urllib.parse import urlsplit

from search.errors import UserError
from search.signals import kept

POLL_S = 0.5
"""Seconds between two looks at the workers and at requests to stop."""

REPEAT_S = 5.0
"""Seconds after which workers that shall hand their trials back are asked again: two signals may arrive as one."""

CONNECT_S = 10.0
"""Seconds within which the cluster's port must answer."""

LOCAL_STORE_BYTES = 100 * 2**20
"""Shared memory of a Ray that is started on this machine: nothing large passes through it."""

DRAIN, HAND_BACK, LEAVE = 1, 2, 3
"""Requests to stop: finish the running trials, hand them back, leave at once."""


class _StoppedError(Exception):
    """A worker ended before the study was complete. Ray runs it again elsewhere, unless the driver stopped it."""


def place(
    job: Callable[..., bool],
    arguments: Mapping[str, Any],
    *,
    address: str,
    workers: int,
    gpus_per_worker: float,
    cpus_per_worker: float = 1,
    note: Callable[[str], None],
    hours: float | None = None,
) -> bool:
    """Run copies of one worker on a Ray cluster until the study is complete.

    Ray starts a worker where its GPU and CPUs are free, on different nodes first, and starts it again, without limit,
    when its process or its node is gone or it was told to terminate there. What the worker raises is not tried again;
    the other workers go on. More workers than fit wait. Once one worker says that the study is complete, the others
    finish their trials and end.

    The first Ctrl-C lets every worker finish its trial, the second, like a request to terminate, makes them hand their
    trials back, the third leaves at once: Ray then kills the workers, and heartbeats find their trials. All have an
    effect in the main thread only. A driver that is killed leaves no workers behind either: Ray ends them.

    Args:
        job: The worker: a function of an importable module, which every node must have. It is called with `arguments`
            and `device`, `"cuda:0"` (the one GPU that Ray shows it) or `"cpu"`. It returns whether the study is
            complete; `False` means interrupted, so a limit of time belongs into `hours`. It takes SIGINT as
            `search.engine.worker.work` does.
        arguments: Keyword arguments of the job, secrets among them.
        address: `ray://HOST:10001`, `HOST:6379`, `auto` for the cluster of this machine, or `local` to start one here.
        workers: How many, at least 1.
        gpus_per_worker: Share of a GPU that a worker takes, in [0, 1]; 0 runs on the CPU.
        cpus_per_worker: CPU cores that a worker takes, above 0; also its number of threads, at least 1.
        note: Is told where workers run, that they were started again, and how they end.
        hours: Hours after which the workers are drained, as by a first Ctrl-C; `None` for no limit.

    Returns:
        Whether the study is complete; `False` if the workers were stopped before.

    Raises:
        UserError: If an argument breaks its rule, Ray is not installed, the cluster cannot be joined, a node cannot
            import the job, or every worker ended without completing the study and one raised a `UserError`.
        KeyboardInterrupt: At the third Ctrl-C.
    """
    _check(workers, gpus_per_worker, cpus_per_worker, hours)
    ray = _ray()
    with kept():
        try:
            _join(ray, address)
            requests = _listen()
            _check_fits(ray, address, gpus_per_worker, cpus_per_worker, note)
            starts = _queue_here(ray)
            task = ray.remote(
                num_gpus=gpus_per_worker,
                num_cpus=cpus_per_worker,
                max_retries=-1,
                retry_exceptions=[_StoppedError],
                max_calls=1,  # a process for each worker: no threads, no GPU memory of an earlier one
                scheduling_strategy="SPREAD",
            )(_run)
            threads, device = max(1, int(cpus_per_worker)), "cuda:0" if gpus_per_worker else "cpu"
            running = {
                task.options(name=f"paretobert worker {number}").remote(
                    job, dict(arguments), number=number, threads=threads, device=device, starts=starts
                ): number
                for number in range(1, workers + 1)
            }
            return _follow(ray, running, starts, requests, note, hours)
        finally:
            ray.shutdown()


def _run(
    job: Callable[..., bool], arguments: Mapping[str, Any], *, number: int, threads: int, device: str, starts: Any
) -> bool:
    """The task: one worker, in a process of its own on some node."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    starts.actor.put_nowait.remote((number, socket.gethostname()))  # nobody waits for it
    try:
        complete = job(**arguments, device=device)
    except KeyboardInterrupt:
        raise _StoppedError from None
    if not complete:
        raise _StoppedError
    return True


@dataclass
class _Requests:
    """How strongly this process was asked to stop. Mutable: signals raise it."""

    level: int = 0


def _follow(
    ray: ModuleType,
    running: dict[Any, int],
    starts: Any,
    requests: _Requests,
    note: Callable[[str], None],
    hours: float | None,
) -> bool:
    """Tell what becomes of the workers, pass requests to stop on to them, and judge how they ended."""
    total, complete, failures = len(running), False, list[Exception]()
    seen: set[int] = set()
    asked, asked_at = 0, 0.0
    deadline = None if hours is None else time.monotonic() + hours * 3600
    while running:
        time.sleep(POLL_S)  # and not within Ray, where Python's signals wait, and two arrive as one
        done, _ = ray.wait(list(running), num_returns=len(running), timeout=0)
        _tell_starts(ray, starts, seen, total, note)
        for reference in done:
            number = running.pop(reference)
            outcome = _outcome(ray, reference, stopping=asked > 0, begun=number in seen)
            note(f"worker {number} of {total} {_said(outcome)}")
            complete = complete or outcome is True
            if isinstance(outcome, Exception):
                failures.append(outcome)
        if complete or (deadline is not None and time.monotonic() > deadline):
            requests.level = max(requests.level, DRAIN)
        if requests.level >= LEAVE:
            raise KeyboardInterrupt
        again = asked == HAND_BACK and time.monotonic() - asked_at > REPEAT_S
        if running and (asked < requests.level or again):
            asked, asked_at = min(asked + 1, HAND_BACK), time.monotonic()
            if not complete and asked == min(requests.level, HAND_BACK) and not again:
                note(_announcement(asked, len(running)))
            for reference in running:
                ray.cancel(reference, force=False, recursive=False)
    if failures and not complete:
        raise next((failure for failure in failures if isinstance(failure, UserError)), failures[0])
    return complete


def _tell_starts(ray: ModuleType, starts: Any, seen: set[int], total: int, note: Callable[[str], None]) -> None:
    """Tell which workers began to run; one that was seen before was started again."""
    waiting = ray.get(starts.actor.qsize.remote())
    for number, host in starts.get_nowait_batch(waiting) if waiting else []:
        again = f"worker {number} of {total} was lost, or stopped where it ran; Ray started it again on {host}"
        note(again if number in seen else f"worker {number} of {total} runs on {host}")
        seen.add(number)


def _outcome(ray: ModuleType, reference: Any, *, stopping: bool, begun: bool) -> bool | Exception:
    """True: the study is complete; False: stopped, as asked, or before it had begun; else what went wrong."""
    errors = ray.exceptions
    try:
        return bool(ray.get(reference))
    except errors.RayTaskError as error:
        if isinstance(error.cause, _StoppedError):
            return False
        if isinstance(error.cause, UserError):
            return UserError(str(error.cause))  # without the traceback, which Ray puts into its own
        # Where SIGINT is ignored (under nohup, say), Ray breaks when it cancels a worker that is about to begin.
        return _import_error(str(error)) or (False if stopping and not begun else error)
    except (errors.TaskCancelledError, errors.WorkerCrashedError) as error:
        return False if stopping else error
    except errors.RayError as error:
        return _import_error(str(error)) or error


def _import_error(text: str) -> UserError | None:
    """What to do where a node of the cluster cannot import the worker."""
    at = text.find("No module named")
    if at < 0:
        return None
    return UserError(
        f"a node of the Ray cluster cannot run the worker ({text[at:].splitlines()[0]}); "
        "install paretobert, in the same version, on every node"
    )


def _said(outcome: bool | Exception) -> str:
    if isinstance(outcome, Exception):
        return f"failed: {outcome}"
    return "has nothing left to do" if outcome else "stopped"


def _announcement(request: int, left: int) -> str:
    if request == DRAIN:
        return (
            f"stopping: {left} workers finish their trials, those that wait do not start; "
            "press Ctrl-C again to hand the trials back and stop now"
        )
    return f"stopping: {left} workers hand their trials back; press Ctrl-C again to leave at once"


def _listen() -> _Requests:
    """Count the requests to stop that reach this process from now on."""
    requests = _Requests()

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        requests.level += 1

    def terminate(_number: int, _frame: FrameType | None) -> None:
        requests.level = max(requests.level, HAND_BACK)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, terminate)
    return requests


def _check(workers: int, gpus_per_worker: float, cpus_per_worker: float, hours: float | None) -> None:
    if workers < 1:
        raise UserError(f"workers is {workers}; it must be at least 1; name how many workers the cluster shall run")
    if not 0 <= gpus_per_worker <= 1:
        raise UserError(
            f"gpus_per_worker is {gpus_per_worker}; a worker uses one device, so it must be between 0 and 1; "
            "for more GPUs name more workers"
        )
    if not cpus_per_worker > 0:
        raise UserError(f"cpus_per_worker is {cpus_per_worker}; it must be above 0; name the cores of one worker")
    if hours is not None and not hours > 0:
        raise UserError(f"hours is {hours}; it must be above 0; leave it out to run until the study is complete")


def _ray() -> ModuleType:
    """Import Ray, with its defaults changed where the environment does not say otherwise."""
    for name, value in {
        "RAY_USAGE_STATS_ENABLED": "0",  # tells nobody that it runs
        "RAY_DEDUP_LOGS": "0",  # lines of two workers that differ in a number are two lines
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the behaviour that Ray announces, without its warning
    }.items():
        os.environ.setdefault(name, value)
    try:
        for name in ("ray.util.queue", "ray.util.scheduling_strategies"):
            import_module(name)
        return import_module("ray")
    except ImportError:
        raise UserError(
            'a Ray cluster needs the package ray, which is not installed here; pip install "paretobert[ray]"'
        ) from None


def _join(ray: ModuleType, address: str) -> None:
    """Connect this process to the cluster, or start one on this machine."""
    local = {"include_dashboard": False, "object_store_memory": LOCAL_STORE_BYTES} if address == "local" else {}
    try:
        _check_port(address)
        ray.init(address=address, logging_level="WARNING", log_to_driver=True, **local)
    except (OSError, RuntimeError, ValueError, ImportError, AssertionError, ray.exceptions.RayError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"the Ray cluster {address!r} cannot be joined ({reason}); check that it runs, with the versions of Ray "
            "and Python that are installed here, that RAY_AUTH_MODE=token and RAY_AUTH_TOKEN are set if it wants a "
            "token, and that the address is ray://HOST:10001, HOST:6379, auto or local"
        ) from None


def _check_port(address: str) -> None:
    """See whether anything answers at HOST:PORT, where Ray itself would wait for minutes; raise an OSError if not."""
    parts = urlsplit(address if "//" in address else f"//{address}")
    if parts.hostname and parts.port:
        socket.create_connection((parts.hostname, parts.port), timeout=CONNECT_S).close()


def _check_fits(ray: ModuleType, address: str, gpus: float, cpus: float, note: Callable[[str], None]) -> None:
    """See whether any node is large enough for a worker: a cluster may still grow, this machine does not."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(node.get("GPU", 0) >= gpus and node.get("CPU", 0) >= cpus for node in nodes):
        return
    needs = f"{gpus:g} GPUs and {cpus:g} CPUs"
    if address == "local":
        raise UserError(f"a worker takes {needs}, which this machine does not have; name smaller numbers")
    note(f"no node of the cluster has the {needs} that a worker takes; the workers wait until one joins")


def _queue_here(ray: ModuleType) -> Any:
    """A queue on the node of this driver (with ray:// the head), so that it does not go with another node."""
    node = ray.get_runtime_context().get_node_id()
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.util.queue.Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})

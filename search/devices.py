"""Which devices of this machine work on a study, and which cores each worker has for itself.

    --devices auto             every GPU; where there is none, one CPU worker with all cores
    --devices cuda:0,cuda:1    these
    --devices cpu:2            two CPU workers, each with half of the cores

One worker, one device: workers never share a device, nor a core, so that one does not slow what another measures.
"""

import os
import platform
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from search.errors import UserError

CORES_VARIABLE = "PARETOBERT_CORES"
"""Environment variable that tells a worker process its cores: their numbers, with commas between them."""

TOPOLOGY = Path("/sys/devices/system/cpu")
"""Where Linux says which logical cores share a physical one."""

PROCESSOR = Path("/proc/cpuinfo")
"""Where Linux says of which model the CPU is."""

THREADS = Path("/proc/self/task")
"""Where Linux lists the threads of this process."""


@dataclass(frozen=True)
class Device:
    """What one worker computes on.

    Attributes:
        name: Torch's name of it: `cuda:0`, `mps` or `cpu`.
        cores: Numbers of the logical cores that its worker is confined to; None where it is not confined.
    """

    name: str
    cores: tuple[int, ...] | None = None

    @property
    def kind(self) -> str:
        """The name without a number: `cuda`, `mps` or `cpu`."""
        return self.name.partition(":")[0]


def resolve(text: str, *, option: str = "--devices") -> tuple[Device, ...]:
    """Find the devices that a text names.

    Args:
        text: `auto`, names with commas between them (`cuda` is `cuda:0`), or `cpu:N` for N CPU workers.
        option: What the text was given as, for messages.

    Returns:
        One device per worker, at least one. CPU workers have disjoint sets of equally many cores; where cores share a
        physical one, they stay together as far as possible, and cores that are left over are not used.

    Raises:
        UserError: If a device is unknown, not here or named twice, if the kinds are mixed, or if there are fewer cores
            than CPU workers.
    """
    names = [name.strip() for name in text.split(",")]
    if names == ["auto"]:
        names = _accelerators() or ["cpu"]
    workers = re.fullmatch(r"cpu(?::(\d+))?", names[0])
    if workers and len(names) == 1:
        return _cpu_workers(int(workers[1] or 1), text)
    names = ["cuda:0" if name == "cuda" else name for name in names]
    here = [*_accelerators(), "cpu"]
    for name in names:
        if re.fullmatch(r"cpu:\d+", name):
            raise UserError(f"{option} is {text!r}; {name} means several CPU workers and stands alone")
        if name not in here:
            raise UserError(
                f"{option} is {text!r}, and there is no device {name!r} here; name some of: auto, {', '.join(here)}, "
                f"cpu:N (N workers, at most {len(available_cores())})"
            )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        instead = f"write cpu:{names.count(twice)}" if twice == "cpu" else "name it once"
        raise UserError(f"{option} is {text!r}, which names {twice} twice; one worker has one device: {instead}")
    devices = tuple(Device(name) for name in names)
    if len({device.kind for device in devices}) > 1:
        raise UserError(
            f"{option} is {text!r}, which mixes kinds of devices; what one study measures is compared, so name "
            "devices of one kind"
        )
    return devices


def environment(device: Device, workers: int) -> dict[str, str]:
    """The environment variables that give a worker process its share of the cores.

    Args:
        device: The device of the worker.
        workers: Number of workers on this machine, at least 1.

    Returns:
        The number of threads; for a CPU worker also its cores, which `take_cores` applies in the worker process.
    """
    if device.cores is None:
        return {"OMP_NUM_THREADS": str(max(1, len(available_cores()) // workers))}
    return {
        "OMP_NUM_THREADS": str(len(device.cores)),
        CORES_VARIABLE: ",".join(str(core) for core in device.cores),
    }


def take_cores(given: Mapping[str, str] = os.environ) -> None:
    """Confine this process to the cores that its launcher gave it; where it gave none, change nothing.

    Call it early, before anything is measured. Threads that exist already, a library's say, are confined too. Systems
    that cannot confine a process, macOS say, have the number of threads only.

    Args:
        given: The environment variables.

    Raises:
        UserError: If the cores cannot be used.
    """
    text = given.get(CORES_VARIABLE)
    if text is None or not hasattr(os, "sched_setaffinity"):
        return
    try:
        cores = {int(core) for core in text.split(",")}
        os.sched_setaffinity(0, cores)
        for thread in THREADS.iterdir() if THREADS.is_dir() else ():
            with suppress(ProcessLookupError):  # it has ended meanwhile
                os.sched_setaffinity(int(thread.name), cores)
    except (ValueError, OSError) as error:
        raise UserError(
            f"{CORES_VARIABLE} is {text!r}, which cannot be used here ({error}); a launcher sets it for its workers, "
            "so unset it"
        ) from None


def available_cores() -> tuple[int, ...]:
    """Numbers of the logical cores that this process may use, in increasing order."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def processor(about: Path = PROCESSOR) -> str:
    """Model of this machine's CPU, `AMD EPYC 7B13` say; what it is built like where nothing names the model.

    Args:
        about: Where Linux says it.
    """
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", about.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def together(cores: Sequence[int], topology: Path = TOPOLOGY) -> tuple[int, ...]:
    """Order logical cores so that those of one processor, and of one physical core, are neighbours.

    Args:
        cores: Numbers of logical cores.
        topology: Folder where Linux says which belong together; elsewhere the order is that of the numbers.
    """

    def place(core: int) -> tuple[int, int, int]:
        folder = topology / f"cpu{core}" / "topology"
        return _first_number(folder / "physical_package_id"), _first_number(folder / "thread_siblings_list"), core

    return tuple(sorted(cores, key=place))


def _first_number(file: Path) -> int:
    """The first number of a file such as `0,4` or `0-1`; 0 where there is none."""
    try:
        found = re.match(r"\d+", file.read_text(encoding="ascii"))
    except OSError:
        return 0
    return int(found[0]) if found else 0


def _cpu_workers(workers: int, text: str) -> tuple[Device, ...]:
    cores = together(available_cores())
    if not 1 <= workers <= len(cores):
        raise UserError(
            f"--devices is {text!r}; this process may use {len(cores)} cores and each CPU worker needs at least one: "
            f"name cpu:1 to cpu:{len(cores)}"
        )
    share = len(cores) // workers
    used = cores if workers == 1 else cores[: workers * share]
    return tuple(Device("cpu", tuple(sorted(used[at : at + share]))) for at in range(0, len(used), share))


def _accelerators() -> list[str]:
    """Torch's names of the GPUs that are here; none of them is touched."""
    import torch

    if torch.cuda.is_available():
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return ["mps"] if torch.backends.mps.is_available() else []

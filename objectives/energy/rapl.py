r"""How are the energy counters of a CPU read.

    /sys/class/powercap/
        intel-rapl:0/      name = package-0   ◄── read: energy_uj, max_energy_range_uj
        intel-rapl:0:0/    name = core            inside package-0, would count twice
        intel-rapl:1/      name = psys            the whole platform, would count twice
        intel-rapl:2/      name = package-1   ◄── read

AMD's processors appear under the same names.
"""

import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from objectives.measurement import MeasurementUnavailable

POWERCAP = Path("/sys/class/powercap")
"""Where Linux keeps the counters."""


@dataclass(frozen=True)
class Domain:
    """One CPU package.

    Attributes:
        folder: Its folder under powercap.
        range_uj: The count at which its counter wraps around to 0, in microjoules.
    """

    folder: Path
    range_uj: int

    def read_uj(self) -> int:
        """Read its counter, in microjoules; it starts again from 0 at `range_uj`.

        Raises:
            MeasurementUnavailable: If the counter cannot be read.
        """
        return _read_number(self.folder / "energy_uj")


class RaplMeter:
    """Energy that all CPU packages have spent since the meter was opened.

    The counters are the sockets': other processes are counted too. A counter that wrapped around once between two
    readings is put right; one that wrapped twice cannot be told from it, so readings must be closer together than one
    turn (several minutes at full load, where the range is 262 kJ).
    """

    source: ClassVar[str] = "rapl"

    def __init__(self, domains: list[Domain]) -> None:
        self._last_uj = {domain: domain.read_uj() for domain in domains}
        self._spent_uj = 0
        self._lock = threading.Lock()  # a worker's sign of life reads it too, from a thread of its own

    def read_mj(self) -> float:
        """Read all counters, in millijoules.

        Raises:
            MeasurementUnavailable: If a counter cannot be read.
        """
        with self._lock:
            for domain, last_uj in self._last_uj.items():
                now_uj = domain.read_uj()
                self._spent_uj += now_uj - last_uj if now_uj >= last_uj else domain.range_uj - last_uj + now_uj
                self._last_uj[domain] = now_uj
            return self._spent_uj / 1000


def open_rapl(device: torch.device, *, root: Path = POWERCAP) -> RaplMeter:
    """Open the counters of all CPU packages, and read them once.

    Args:
        device: The device that the models run on.
        root: The powercap folder.

    Returns:
        A counter that can be read.

    Raises:
        MeasurementUnavailable: If the models do not run on the CPU, or there is no counter, or it cannot be read.
    """
    if device.type != "cpu":
        raise MeasurementUnavailable(f"rapl counts CPUs, and the models run on {device}: run them on cpu")
    domains = [Domain(folder, _read_number(folder / "max_energy_range_uj")) for folder in _packages(root)]
    if not domains:
        raise MeasurementUnavailable(
            f"rapl: there is no CPU package under {root} (most virtual machines and containers have none): "
            "run on the machine itself, or take the energy source 'model'"
        )
    return RaplMeter(domains)


def _packages(root: Path) -> list[Path]:
    folders = sorted(path for path in root.glob("intel-rapl:*") if re.fullmatch(r"intel-rapl:\d+", path.name))
    return [folder for folder in folders if _read(folder / "name").startswith("package")]


def _read_number(file: Path) -> int:
    text = _read(file)
    if not text.isdecimal():
        raise MeasurementUnavailable(f"rapl: {file} holds {text!r}, not a number; take the energy source 'model'")
    return int(text)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except OSError as error:
        raise MeasurementUnavailable(
            f"rapl cannot read {file} ({error.strerror}): run as root, or let users read it "
            f"(sudo chmod a+r {file}); or take the energy source 'model'"
        ) from error

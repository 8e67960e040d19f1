"""Say the power of an NVIDIA board again and again: an instrument of its own, in a process of its own.

    python studies/benchmarks/power.py GPU-UUID        one line per sample: monotonic seconds, milliwatts

It ends when its output is closed.
"""

import sys
import time
from itertools import pairwise

import pynvml

PERIOD_S = 0.02


def main() -> None:
    pynvml.nvmlInit()
    board = pynvml.nvmlDeviceGetHandleByUUID(sys.argv[1])
    while True:
        print(time.monotonic(), pynvml.nvmlDeviceGetPowerUsage(board), flush=True)
        time.sleep(PERIOD_S)


def integral_mj(samples: list[tuple[float, float]], begin_s: float, end_s: float) -> float:
    """Millijoules between two moments, from samples of (seconds, milliwatts); between them power changes evenly."""
    inside = [(s, mw) for s, mw in samples if begin_s <= s <= end_s]
    total = sum((b - a) * (x + y) / 2 for (a, x), (b, y) in pairwise(inside))
    return total * (end_s - begin_s) / (inside[-1][0] - inside[0][0])


if __name__ == "__main__":
    main()

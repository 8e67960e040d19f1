"""The table: what each way keeps at each size, how far ours is ahead or behind, and hypervolumes."""

import statistics
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.analysis import evidence

MEANS = ("encoder_share", "latency_ms", "speed_up", "parameters", "energy_mj", "compute_s", "selection")


def row(target: float, results: list[dict[str, Any]]) -> dict[str, Any]:
    """One way at one size, as means over its seeds.

    Args:
        target: Largest share of the encoder.
        results: One per seed, at least one.
    """
    accuracies = [one["accuracy"] for one in results]
    made = {
        "target": target,
        "accuracy_mean": round(statistics.mean(accuracies), 4),
        "accuracy_std": round(statistics.stdev(accuracies), 4) if len(results) > 1 else None,
        "seeds": len(results),
    }
    for name in MEANS:
        values = [one[name] for one in results if name in one]
        made[name] = round(statistics.mean(values), 4) if len(values) == len(results) else None
    return made


def ahead(ours: list[dict[str, Any]], others: list[dict[str, Any]]) -> dict[str, Any]:
    """How much more accurate ours is on the same rows, and its 95 % interval: of the rows, and of several seeds.

    Args:
        ours: Results of ours at a size, one per seed, with their answers.
        others: Those of another way.

    Raises:
        ValueError: If they answered different numbers of rows.

    Example:
        >>> ahead([{"answers": "1110"}], [{"answers": "1000"}])["mean"]
        0.5
    """
    one, other = _evidence(ours), _evidence(others)
    if one.rows != other.rows:
        raise ValueError(f"ours answered {one.rows} rows and the other {other.rows}; compare them on the same rows")
    mean, low, high = evidence.difference(one, other)
    verdict = "level" if low <= 0 <= high else "ahead" if mean > 0 else "behind"
    return {"mean": round(mean, 4), "interval": [round(low, 4), round(high, 4)], "verdict": verdict}


def _evidence(results: list[dict[str, Any]]) -> evidence.Evidence:
    right = np.array([[int(answer) for answer in one["answers"]] for one in results])
    return evidence.gather([partial(_accuracy, one) for one in right], right.shape[1])


def _accuracy(right: NDArray[np.int64], rows: NDArray[np.int64]) -> float:
    return float(right[rows].mean())


def ratios(ours: float, peers: dict[str, float]) -> dict[str, Any]:
    """Our hypervolume over that of each peer, and of the best; None where a peer has none, or there is no peer."""
    each = {name: round(ours / volume, 4) if volume > 0 else None for name, volume in peers.items()}
    best = max(peers.values(), default=0.0)
    return {
        "hypervolume_ratio_to_best_peer": round(ours / best, 4) if best > 0 else None,
        "best_peer": max(peers, key=lambda name: peers[name]) if best > 0 else None,
        "hypervolume_ratios": each,
    }


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """The rows for people, by size."""
    found = [
        f"{'at most':>8} {'way':38} {'encoder':>8} {'accuracy':>8} {'std':>7} {'distilled':>9} {'ours more':>9} "
        f"{'interval':>18} {'speed-up':>8} {'compute':>8} {'volume':>7} {'compared':>8}"
    ]
    for one in sorted(rows, key=lambda one: -one.get("target", 2.0)):
        if "why_not" in one:
            found.append(f"{_cell(one.get('target'), '8.3f')} {one['name']:38} not run: {one['why_not']}")
            continue
        more = one.get("ours_ahead") or {}
        interval = "{:+.3f} to {:+.3f}".format(*more["interval"]) if more else ""
        found.append(
            f"{one['target']:8.3f} {one['name']:38} {one['encoder_share']:8.3f} {one['accuracy_mean']:8.4f} "
            f"{_cell(one['accuracy_std'], '7.4f')} {_cell(one.get('accuracy_mean_our_recovery'), '9.4f')} "
            f"{_cell(more.get('mean'), '+9.4f')} {interval:>18} {_cell(one['speed_up'], '8.2f')} "
            f"{_cell(one['compute_s'], '8.1f')} {_cell(one.get('hypervolume'), '7.4f')} "
            f"{_cell(one.get('hypervolume_compared'), '8.4f')}"
        )
    return found


def _cell(value: float | None, form: str) -> str:
    return f"{value:{form}}" if value is not None else " " * (int(form.lstrip("+").split(".")[0]) - 1) + "-"

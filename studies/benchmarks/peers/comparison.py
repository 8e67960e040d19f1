"""The table: what each way keeps at each size, how far ours is ahead or behind, and hypervolumes."""

import statistics
from typing import Any

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
    """How much more accurate ours is on the same rows, and its 95 % interval.

    The answers of each row are averaged over the seeds, so the interval is that of the rows, not of the seeds.

    Args:
        ours: Results of ours at a size, one per seed, with their answers.
        others: Those of another way.

    Example:
        >>> ahead([{"answers": "1110"}], [{"answers": "1000"}])["mean"]
        0.5
    """
    differences = [mine - other for mine, other in zip(_by_row(ours), _by_row(others), strict=True)]
    mean = statistics.mean(differences)
    half = 1.96 * statistics.stdev(differences) / len(differences) ** 0.5
    verdict = "level" if mean - half <= 0 <= mean + half else "ahead" if mean > 0 else "behind"
    return {"mean": round(mean, 4), "interval": [round(mean - half, 4), round(mean + half, 4)], "verdict": verdict}


def _by_row(results: list[dict[str, Any]]) -> list[float]:
    return [statistics.mean(map(int, answers)) for answers in zip(*(one["answers"] for one in results), strict=True)]


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
        f"{'interval':>18} {'speed-up':>8} {'compute':>8} {'volume':>7}"
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
            f"{_cell(one['compute_s'], '8.1f')} {_cell(one.get('hypervolume'), '7.4f')}"
        )
    return found


def _cell(value: float | None, form: str) -> str:
    return f"{value:{form}}" if value is not None else " " * (int(form.lstrip("+").split(".")[0]) - 1) + "-"

"""What is kept of a study for good, and which file says what.

definition.json  the definition, without this machine's folders
front.csv        the front of the search        trials.csv     all trials, failed and bad ones too
confirmed.csv    searched beside confirmed      headline.csv   one row per size: `headline.py`
evidence.json    all of it with commit, date, machine and cost; the tables of README.md are made of it
report.html      `paretobert report`            README.md      for people
"""

import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from benchmarks.harness import circumstances

from parts.headline import table
from parts.speeds import TOKENS
from search import Definition
from search.analysis.confirmed import compare, sentences
from search.analysis.front import front
from search.analysis.indicators import hypervolume
from search.analysis.ledger_view import as_values
from search.analysis.report import render_report
from search.analysis.table import frame, front_frame
from search.records import StudyRecord


def confirmed_frame(study: StudyRecord) -> pd.DataFrame:
    """Searched beside confirmed, one row per trial and objective: mean and spread over the seeds."""
    found = []
    for confirmation in study.confirmations:
        for objective in study.objectives:
            compared = compare(study, confirmation, objective.name)
            if compared is None:
                continue
            each = [float(value) for value in confirmation.quantities[objective.name]["each"]]
            found.append(
                {
                    "trial": confirmation.trial,
                    "role": study.records[confirmation.trial].role,
                    "quantity": objective.name,
                    "unit": objective.unit,
                    "searched": compared.searched,
                    "retrained_on_selection": compared.retrained,
                    "confirmed": compared.confirmed,
                    "sd_over_seeds": float(np.std(each, ddof=1)) if len(each) > 1 else None,
                    "low": compared.low,
                    "high": compared.high,
                    "seeds": len(confirmation.seeds),
                    "steps": confirmation.recovery.get("steps"),
                    "each": " ".join(f"{value:.6g}" for value in each),
                    "verdict": compared.verdict,
                }
            )
    return pd.DataFrame(found)


def portable(definition: Definition) -> dict[str, Any]:
    """The definition without this machine's folders: of a path only its last two parts are kept."""
    values = definition.model_dump(mode="json")
    for name in ("model", "data"):
        if Path(values[name]).expanduser().is_absolute():
            values[name] = "/".join(Path(values[name]).parts[-2:])
    return values


def machine() -> str:
    """The processor, as the system names it."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else None
    return f"{named[1] if named else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def result_of(study: StudyRecord, listed: list[dict[str, Any]], *, quick: bool) -> dict[str, Any]:
    """Everything of evidence.json."""
    book = as_values(study)
    states: dict[str, int] = {}
    for record in study.records:
        states[record.state] = states.get(record.state, 0) + 1
    return {
        "study": study.name,
        "quick": quick,
        "metric": study.definition.task.metric,
        "rows": listed,
        "train_rows": study.rows.get("train", (None,))[0],
        "selection_rows": study.rows.get("selection", (None,))[0],
        "held_out_rows": study.confirmations[0].rows,
        "steps": {str(each.trial): each.recovery["steps"] for each in study.confirmations if each.recovery},
        "trials": states,
        "infeasible": sum(not record.feasible for record in study.complete),
        "front": len(front(study)),
        "hypervolume": hypervolume(study),
        "said": sentences(study),
        "search_seconds": book["seconds"],
        "search_energy": book["energy"],
        "pays": book["points"],
        "confirmation_seconds": round(sum(each.seconds for each in study.confirmations), 1),
        "searched_under": study.records[0].conditions,
        "content": None,
        "processor": machine(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        **circumstances(),
    }


def text_of(result: dict[str, Any], command: str) -> str:
    """README.md of the folder."""
    energy = "; ".join(f"{each['joules']:.4g} J ({each['source']})" for each in result["search_energy"].values())
    trials = ", ".join(f"{count} {state}" for state, count in result["trials"].items())
    quick = "A quick run: few seeds and steps, no evidence.\n\n" if result["quick"] else ""
    where = f"{result['processor']}, {result['machine']}; load {result['load']} when it ended"
    return "\n".join(
        [
            f"# {result['study']}",
            "",
            f"{quick}`{command}`, {result['date']}, commit {result['commit']}; {where}.",
            "",
            f"Trained on {result['train_rows']:,} rows, searched on {result['selection_rows']:,}, confirmed on "
            f"{result['held_out_rows']:,} that the search never read. Trials: {trials}; {result['infeasible']} of them "
            f"infeasible. {result['front']} points on the front, hypervolume {result['hypervolume'] or 0:.4f}.",
            f"The search took {result['search_seconds'] / 60:.1f} min and {energy or 'an unknown energy'}, the "
            f"confirmation {result['confirmation_seconds'] / 60:.1f} min.",
            "",
            *table(result),
            "",
            *result["said"],
            "",
            "± is the standard deviation over the seeds. Speed-ups are medians of pairs with the dense model, fp32, "
            f"{TOKENS} tokens; intervals are in headline.csv. All trials, the bad ones too: trials.csv.",
            "",
        ]
    )


def write(study: StudyRecord, result: dict[str, Any], out: Path, command: str) -> None:
    """Write the folder."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "definition.json").write_text(json.dumps(portable(study.definition), indent=1) + "\n", encoding="utf-8")
    front_frame(study).to_csv(out / "front.csv", index=False)
    frame(study).to_csv(out / "trials.csv", index=False)
    confirmed_frame(study).to_csv(out / "confirmed.csv", index=False)
    pd.json_normalize(result["rows"], sep=".").to_csv(out / "headline.csv", index=False)
    (out / "evidence.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (out / "report.html").write_text(render_report(study), encoding="utf-8")
    (out / "README.md").write_text(text_of(result, command), encoding="utf-8")

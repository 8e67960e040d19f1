"""What is finished stays finished: one line of JSON per model, so that an interrupted run goes on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Kept:
    """Results by key, in a file.

    Args:
        file: Where they are; its folder exists.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, Any] = {}
        for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
            try:
                one = json.loads(line)
            except json.JSONDecodeError:
                continue  # an interruption left half a line
            self._known[_text(one["key"])] = one["result"]

    def get(self, key: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of a key: as it was kept, else made now and kept. What fails is not kept."""
        text = _text(key)
        if text not in self._known:
            result = make()
            with self._file.open("a", encoding="utf-8") as out:
                out.write(json.dumps({"key": key, "result": result}) + "\n")
            self._known[text] = result
        return self._known[text]


def _text(key: dict[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)

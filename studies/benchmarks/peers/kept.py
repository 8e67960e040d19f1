"""What is finished stays finished: one line of JSON per model or refusal, so that an interrupted run goes on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from environments import UnavailableError


class Kept:
    """Results by key, in a file.

    Args:
        file: Where they are; its folder exists.
        adds: Whether what is missing is made.
    """

    def __init__(self, file: Path, *, adds: bool = True) -> None:
        self._file, self._adds = file, adds
        self._known: dict[str, Any] = {}
        for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
            try:
                one = json.loads(line)
            except json.JSONDecodeError:
                continue  # an interruption left half a line
            self._known[_text(one["key"])] = one["result"]

    def get(self, key: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of a key: as it was kept, else made now and kept. What fails is not kept.

        Raises:
            UnavailableError: If it is missing, and nothing is added.
        """
        text = _text(key)
        if text not in self._known:
            if not self._adds:
                raise UnavailableError("not finished when this was printed")
            result = make()
            with self._file.open("a", encoding="utf-8") as out:
                out.write(json.dumps({"key": key, "result": result}) + "\n")
            self._known[text] = result
        return self._known[text]


def _text(key: dict[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)

"""What goes wrong because of something a person can put right, and how it is said.

Every message is one sentence with the name, the value, the rule and what to do. The commands print it without a
traceback and exit with code 2.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Something the user gave cannot be used. The message says what, why and what to do; nothing was written."""


class TrialError(Exception):
    """One plan could not be evaluated, its loss became NaN, say: the trial fails with this, the search goes on."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Say that a name is not known, with the nearest known name and the whole list.

    Args:
        kind: What the name names, for example `"objective"`.
        name: The name that was given.
        known: The names that exist.

    Returns:
        One sentence.

    Example:
        >>> unknown_name("sampler", "nsga", ["nsga2", "tpe"])
        "unknown sampler 'nsga'; did you mean 'nsga2'? Known: nsga2, tpe"
    """
    names = list(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown {kind} {name!r}{hint} Known: {', '.join(names)}"

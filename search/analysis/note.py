"""The note of a study in the dashboard, in Markdown: what it is, how far, where, and how to go on.

What a person writes below the last line of it is kept when it is written again, and a note that a person replaced is
left alone.
"""

import re
import shlex

from search.analysis import stories
from search.analysis.confirmed import sentences
from search.analysis.front import front
from search.records import StudyRecord

END = "*Written by paretobert, and written again when there is news. What stands below this line stays.*"
"""Last line of what is written here; what a person writes goes below it."""

LONGEST = 600
"""Characters of one fact, at most: data paths and lists of labels can be long."""


def render_note(study: StudyRecord, *, storage: str, artifacts: str | None = None) -> str:
    """The note of a study.

    Args:
        study: The study, at any stage.
        storage: URL of its database without a password, as a command would name it.
        artifacts: Where its artifacts are, as a command would name it; None where that is the default.

    Returns:
        Markdown. Nothing that a user can choose is read as Markdown or as HTML in it, and the commands can be pasted.
    """
    name, where = shlex.quote(study.name), f" --storage {shlex.quote(storage)}"
    kept = f" --artifacts {shlex.quote(artifacts)}" if artifacts else ""
    commands = [
        f"paretobert work {name}{where}{kept}   # resume, or join from another machine",
        f"paretobert report {name}{where} --out report.html",
        f"paretobert pick {name}{where} --knee",
        f"paretobert confirm {name}{where}{kept} --points 3",
        f"paretobert show {name}{where} {_example(study)}",
    ]
    facts = [*stories.about(study)[:4], ("Progress", stories.progress(study)), ("Front", _front(study))]
    facts += [("Confirmed", sentence) for sentence in sentences(study)[1:]]
    listed = "\n".join(f"- **{escaped(title)}**: {escaped(text)}" for title, text in facts)
    return f"## {escaped(study.name)}\n\n{listed}\n- **Database**: {escaped(storage)}\n\n{_fenced(commands)}\n\n{END}\n"


def merged(present: str, new: str) -> str:
    """The note to write where there is one already.

    Args:
        present: The note as it stands; empty where there is none.
        new: What `render_note` gave.

    Returns:
        The new note with what a person wrote below the old one; `present` where a person replaced it.
    """
    if not present.strip():
        return new
    _ours, line, theirs = present.partition(END)
    if not line:
        return present
    return new.removesuffix("\n") + theirs if theirs.strip() else new


def escaped(text: str) -> str:
    """A text as Markdown that reads as itself: one line, no markup, no link."""
    line = " ".join(text.split())
    line = line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"
    return re.sub(r"([\\`*_\[\]<>~|$&@]|:(?=//)|(?<=www)\.)", r"\\\1", line)


def _fenced(lines: list[str]) -> str:
    """A block of commands; its fence is longer than any in them."""
    body = "\n".join(" ".join(line.splitlines()) for line in lines)
    longest = max((len(run) for run in re.findall("`+", body)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n{body}\n{fence}"


def _example(study: StudyRecord) -> int:
    members = front(study)
    return members[0].trial if members else 0


def _front(study: StudyRecord) -> str:
    """The cards of the report in one line."""
    found = [f"{card.title}: {card.value} ({card.detail})" for card in stories.cards(study)]
    return "; ".join(found)

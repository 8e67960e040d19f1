"""A process that this one started: its pipes, its log, its end, and the passwords that must not be seen in them."""

import os
import re
import select
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import IO
from urllib.parse import unquote

USER_ERROR = 2
"""Exit code of a command that could not use what it was given; it has said why in one sentence."""

ERROR_LINES = 50
"""Lines of the standard error that are kept in memory, to say why a worker ended."""

CHUNK_BYTES = 65536
"""Bytes read at once; a line that is longer is taken in pieces."""

SHORTEST_SECRET = 6
"""Characters from which on a password is hidden wherever it stands."""


class Stream:
    """The lines of a pipe, as they come."""

    def __init__(self, pipe: IO[bytes], *, is_error: bool) -> None:
        os.set_blocking(pipe.fileno(), False)
        self.pipe = pipe
        self.is_error = is_error
        self.at_end = False
        self._rest = b""

    def has_more(self) -> bool:
        """Whether something, or the end, can be read at once."""
        return bool(select.select([self.pipe], [], [], 0)[0])

    def read(self) -> list[str]:
        """The lines that are complete by now, without the empty ones."""
        chunk = self.pipe.read(CHUNK_BYTES)
        if chunk is None:  # nothing at the moment
            return []
        self.at_end = not chunk
        *lines, self._rest = re.split(rb"[\r\n]+", self._rest + chunk)
        if self.at_end or len(self._rest) > CHUNK_BYTES:
            lines, self._rest = [*lines, self._rest], b""
        return [line.decode(errors="replace") for line in lines if line.strip()]


class Child:
    """A running worker: its pipes, its log and its end."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.hide = hider(environment)
        self._errors: deque[str] = deque(maxlen=ERROR_LINES)
        self._log_file = log
        self._log = log.open("ab", buffering=0)
        self.log(f"--- {datetime.now().astimezone().isoformat(timespec='seconds')} {' '.join(command[-2:])}")
        self._errors.clear()
        try:
            self._popen = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,  # held open: its end tells the worker that the launcher is gone
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,  # Ctrl-C in the terminal reaches the launcher only
            )
        except OSError:
            self._log.close()
            raise
        assert self._popen.stdout is not None
        assert self._popen.stderr is not None
        self.streams = (Stream(self._popen.stdout, is_error=False), Stream(self._popen.stderr, is_error=True))

    def log(self, line: str) -> None:
        """Keep a line of the standard error; a full disk does not end the search."""
        self._errors.append(hidden := self.hide(line))
        with suppress(OSError):
            self._log.write(f"{hidden}\n".encode())

    def signal(self, number: int) -> None:
        """Send a signal to the worker alone, not to its children, if it still runs."""
        self._popen.send_signal(number)

    def kill(self) -> None:
        """End the worker and its children now."""
        # The group outlives its first process while children are left, and only then is its number still taken.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signal.SIGKILL)

    def code(self) -> int | None:
        """How it ended; None while it runs."""
        return self._popen.poll()

    def close(self) -> None:
        """End what is left of it, and close its pipes and its log."""
        self.kill()
        self._popen.wait()
        for pipe in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
            if pipe is not None:
                pipe.close()
        self._log.close()

    def sentence(self) -> str:
        """What a worker that could not use something said about it."""
        lines = list(self._errors)
        starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
        said = " ".join(lines[starts[-1] :]) if starts else self._last_line()
        return said.removeprefix("error: ") or f"exit code {USER_ERROR}; see {self._log_file}"

    def cause(self, code: int) -> str:
        """Why it died, as far as that is known."""
        if code == -signal.SIGKILL:
            return "killed (SIGKILL: by a person, or by the system because memory ran out)"
        if code < 0:
            return f"ended by {signal.Signals(-code).name}; see {self._log_file}"
        raised = [line for line in self._errors if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)]
        said = raised[-1] if raised else self._last_line()
        return f"exit code {code}: {said or 'nothing was said'}; see {self._log_file}"

    def _last_line(self) -> str:
        return self._errors[-1] if self._errors else ""


def hider(environment: Mapping[str, str]) -> Callable[[str], str]:
    """Make a function that hides the passwords of an environment in a text.

    Args:
        environment: Environment variables; passwords are the values of those whose name has PASSWORD in it, and the
            passwords of URLs.

    Returns:
        The function: text in, text out.
    """
    found = [value for name, value in environment.items() if "PASSWORD" in name.upper()]
    for value in environment.values():
        in_url = re.match(r"[\w+.-]+://[^/@:]*:([^@]*)@", value)
        in_query = re.findall(r"[?&]\w*pass\w*=([^&]+)", value) if "://" in value else []
        for secret in (*in_query, *([in_url[1]] if in_url else [])):
            found += [secret, unquote(secret)]
    # A very short one is hidden where it can only be a password: everywhere else it would hide parts of words.
    long = sorted({secret for secret in found if len(secret) >= SHORTEST_SECRET}, key=len, reverse=True)
    short = sorted({f":{secret}@" for secret in found if 0 < len(secret) < SHORTEST_SECRET})
    if not long and not short:
        return lambda text: text
    pattern = re.compile("|".join(map(re.escape, [*long, *short])))
    return lambda text: pattern.sub(lambda match: ":***@" if match[0] in short else "***", text)

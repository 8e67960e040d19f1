"""Opening optuna-dashboard on a study's storage.

The dashboard runs in this process on a storage of our making, so that a password in the URL is in no process list:

    storage ──► readable attributes, downloads (`search.engine.presented`) ──► optuna-dashboard ──► browser
       ▲
       └── note and pictures, when it opens and then each minute (`search.engine.publishing`)
"""

import threading
from contextlib import suppress
from pathlib import Path
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna_dashboard import wsgi

from search.engine import study as studies
from search.engine.presented import Downloads, PresentedStorage
from search.engine.publishing import publish
from search.engine.storage import open_storage
from search.errors import UserError

REFRESH_S = 60.0
"""Seconds between two looks at whether note and pictures are out of date."""


def serve(url: str, study: str, *, host: str, port: int, artifacts: str | None = None) -> None:
    """Serve the dashboard until interrupted.

    Args:
        url: SQLAlchemy URL of the storage.
        study: Name of the study whose page is named.
        host: Address to listen on. Who reaches it can change the studies: optuna-dashboard has no login.
        port: Port to listen on; 0 takes a free one.
        artifacts: Where the study's artifacts are, as a command would name it; None where that is the default.

    Raises:
        UserError: If the storage cannot be reached, or the address is taken.
    """
    storage = open_storage(url, create=False)
    downloads = Downloads(Path(f"runs/{study}/uploads"))
    application = wsgi(PresentedStorage(storage, downloads), artifact_store=downloads)
    try:
        listening = make_server(host, port, application, server_class=_Server, handler_class=_SilentHandler)
    except OSError as error:
        raise UserError(
            f"the dashboard cannot listen on {host}:{port} ({error.strerror or error}); name another with "
            "--host and --port"
        ) from None
    over = threading.Event()
    refreshing = threading.Thread(target=_refresh, args=(url, study, artifacts, over), daemon=True)
    with listening as server:
        number = storage.get_study_id_from_name(study)
        refreshing.start()
        print(
            f"http://{host}:{server.server_port}/dashboard/studies/{number} (Ctrl-C ends it; there is no login)",
            flush=True,
        )
        try:
            server.serve_forever()
        finally:
            over.set()


def _refresh(url: str, name: str, artifacts: str | None, over: threading.Event) -> None:
    """Keep note and pictures up to date, on a connection of its own; an error is followed by the next try."""
    study, seen = None, -1
    while True:
        with suppress(Exception):  # the page goes on with what it shows
            study = study or studies.get(open_storage(url, create=False), name)
            finished = sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
            if finished != seen:
                publish(study, url=url, artifacts=artifacts, with_importance=False)  # soon
                publish(study, url=url, artifacts=artifacts)  # whole
                seen = finished
        if over.wait(REFRESH_S):
            return


class _Server(ThreadingMixIn, WSGIServer):
    """Answers several requests at a time: the page polls while it loads."""

    daemon_threads = True


class _SilentHandler(WSGIRequestHandler):
    """Prints no line per request."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        pass

"""Opening optuna-dashboard on a study's storage.

The dashboard runs in this process on a storage of our making, so that a password in the URL is in no process list.
"""

from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna_dashboard import wsgi

from search.engine.storage import open_storage
from search.errors import UserError


def serve(url: str, study: str, *, host: str, port: int) -> None:
    """Serve the dashboard until interrupted.

    Args:
        url: SQLAlchemy URL of the storage.
        study: Name of the study whose page is named.
        host: Address to listen on. Who reaches it can change the studies: optuna-dashboard has no login.
        port: Port to listen on; 0 takes a free one.

    Raises:
        UserError: If the storage cannot be reached, or the address is taken.
    """
    storage = open_storage(url, create=False)
    application = wsgi(storage)
    try:
        listening = make_server(host, port, application, server_class=_Server, handler_class=_SilentHandler)
    except OSError as error:
        raise UserError(
            f"the dashboard cannot listen on {host}:{port} ({error.strerror or error}); name another with "
            "--host and --port"
        ) from None
    with listening as server:
        number = storage.get_study_id_from_name(study)
        print(
            f"http://{host}:{server.server_port}/dashboard/studies/{number} (Ctrl-C ends it; there is no login)",
            flush=True,
        )
        server.serve_forever()


class _Server(ThreadingMixIn, WSGIServer):
    """Answers several requests at a time: the page polls while it loads."""

    daemon_threads = True


class _SilentHandler(WSGIRequestHandler):
    """Prints no line per request."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        pass

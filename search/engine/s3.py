"""Artifacts in an S3-compatible store, through Optuna's own `Boto3ArtifactStore`.

Endpoint, region and credentials come from boto3's own chain: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, a profile, the role
of the machine. This module is the only importer of boto3 (extra `s3`).

- Optuna takes a bucket that does not exist for an artifact that does not: `read` tells them apart.
- Optuna copies what it writes into memory first, because boto3 may close the file: here it may.
- Optuna cannot write only where nothing is, so that of two makers one wins: `write_new` asks boto3 itself.
- boto3 tries again within a tenth of a second, and not where an answer breaks off: `_retried` has more patience.
"""

import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError
from botocore.exceptions import ConnectionError as NoConnectionError
from optuna.artifacts import Boto3ArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound
from urllib3.exceptions import HTTPError

from search.errors import UserError

PAUSES_S = (0.5, 2.0)
"""Seconds between a request that failed for a passing reason and the next try; after the last one it is given up."""

ATTEMPTS = 3
"""How often boto3 itself makes a request, each time (its standard mode)."""

CONNECT_S = 3
"""Seconds after which an endpoint that does not answer counts as unreachable."""

READ_S = 60
"""Seconds without a byte after which a transfer counts as broken."""

_BROKEN = (NoConnectionError, HTTPClientError, IncompleteReadError, HTTPError)
"""No answer, or one that began and did not end."""


class S3Store:
    """Objects of one bucket under one prefix (`search.stores.Store`).

    Args:
        bucket: Name of the bucket; it exists.
        prefix: What all names begin with; may be empty.

    Raises:
        UserError: If boto3's settings cannot be used.
    """

    def __init__(self, bucket: str, prefix: str) -> None:
        self._bucket = bucket
        self._prefix = prefix.strip("/")
        config = Config(
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            connect_timeout=CONNECT_S,
            read_timeout=READ_S,
            # Content is compared by SHA-256 here; many compatible stores do not know boto3's newer checksums.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        try:
            self._client: Any = boto3.session.Session().client("s3", config=config)
        except (BotoCoreError, ValueError) as error:  # ValueError: the endpoint is not an address
            raise self._unusable(error) from None
        self._store = Boto3ArtifactStore(bucket, self._client, avoid_buf_copy=True)

    def read(self, name: str, into: BinaryIO) -> bool:
        """Copy an object into a file; False where there is none.

        Raises:
            UserError: If the store cannot be used.
        """
        with self._told():
            try:
                _retried(lambda: self._copy(name, into))
            except ArtifactNotFound as absent:
                if _code(absent.__cause__) != "NoSuchKey":
                    raise absent.__cause__ or absent from None
                return False
        return True

    def write(self, name: str, file: Path) -> None:
        """Write a file's content to an object, in place of what was there; it appears whole or not at all.

        Raises:
            UserError: If the store cannot be used.
            OSError: If the file cannot be read.
        """
        with self._told():
            _retried(lambda: self._put(name, file))

    def write_new(self, name: str, file: Path) -> bool:
        """Write a file's content where there is no object; False where there is one, or where another is being written.

        A store that does not know conditional writes writes in any case: the last one stays.

        Raises:
            UserError: If the store cannot be used.
            OSError: If the file cannot be read.
        """
        content, key = file.read_bytes(), self._key(name)
        with self._told():
            try:
                _retried(lambda: self._client.put_object(Bucket=self._bucket, Key=key, Body=content, IfNoneMatch="*"))
            except ClientError as error:
                if _code(error) in ("PreconditionFailed", "ConditionalRequestConflict"):
                    return False
                if _code(error) != "NotImplemented":
                    raise
                _retried(lambda: self._put(name, file))
        return True

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def _put(self, name: str, file: Path) -> None:
        with file.open("rb") as content:
            self._store.write(self._key(name), content)

    def _copy(self, name: str, into: BinaryIO) -> None:
        into.seek(0)
        into.truncate()
        with closing(self._store.open_reader(self._key(name))) as body:
            shutil.copyfileobj(body, into)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn an error of the store into a sentence."""
        try:
            yield
        except (BotoCoreError, ClientError, Boto3Error, HTTPError) as error:
            raise self._unusable(error) from None

    def _unusable(self, error: Exception) -> UserError:
        reason = re.sub(r"//[^/@\s]*@", "//", " ".join(str(error).split()) or type(error).__name__)
        return UserError(
            f"the artifact store 's3://{self._bucket}/{self._prefix}' cannot be used ({reason}); check the bucket, "
            "AWS_ENDPOINT_URL and the credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile). "
            "What was made is kept, and the same command goes on"
        )


def _retried(request: Callable[[], None]) -> None:
    """Make a request, and again after a pause where it failed for a passing reason."""
    for pause_s in PAUSES_S:
        try:
            return request()
        except (*_BROKEN, ClientError) as error:
            if isinstance(error, ClientError) and not _is_passing(error):
                raise
            time.sleep(pause_s)
    return request()


def _is_passing(error: ClientError) -> bool:
    """Whether the store is overloaded, or has an error of its own."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status == 429 or (status >= 500 and _code(error) != "NotImplemented")


def _code(error: BaseException | None) -> str:
    """The code of an answer of the store, for example `NoSuchKey`."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""

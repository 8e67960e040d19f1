"""From what a user writes after `--artifacts` to the artifacts: a folder, or a store that machines share."""

import re
from pathlib import Path
from urllib.parse import urlsplit

from search.artifacts import Artifacts
from search.errors import UserError

_RULE = "write the path of a folder, or s3://BUCKET/PREFIX"
_URL = re.compile(r"(s3:|[a-z][a-z0-9+.-]+:/)", re.IGNORECASE)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


def is_url(location: str) -> bool:
    """Whether a location names a store, or tries to, and not a folder.

    Example:
        >>> [is_url(location) for location in ("s3://bucket/study", "GS://bucket", "runs/study", "/shared/study")]
        [True, True, False, False]
    """
    return _URL.match(location) is not None


def open_artifacts(location: str, *, cache: Path) -> Artifacts:
    """Open the artifacts of a study. Nothing is written, and no store is asked, before the first use.

    Args:
        location: Path of a folder, which may be one that machines share; or `s3://BUCKET/PREFIX`, a store with the
            interface of Amazon S3. Its endpoint and credentials come from boto3's own settings (AWS_ENDPOINT_URL,
            AWS_ACCESS_KEY_ID, a profile), never from the location.
        cache: Folder for this machine's copy of what is in a store; a location that is a folder needs none.

    Returns:
        The artifacts.

    Raises:
        UserError: If the location is neither, or boto3 is missing or cannot be set up. The message never repeats what
            may be a secret.
    """
    if not location:
        raise UserError(f"the artifact location is empty; {_RULE}")
    if not is_url(location):
        return Artifacts(Path(location))
    bucket, prefix = _parts(location)
    try:
        from search.engine.s3 import S3Store
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("boto3", "botocore", "s3transfer"):
            raise
        raise UserError(
            f"the artifact location 's3://{bucket}' needs boto3, which is not installed; pip install \"paretobert[s3]\""
        ) from None
    return Artifacts(cache, S3Store(bucket, prefix))


def _parts(location: str) -> tuple[str, str]:
    """Bucket and prefix of a URL."""
    scheme = location.partition(":")[0].lower()
    if scheme != "s3":
        raise UserError(f"the artifact location has the scheme '{scheme}', which is not known; {_RULE}")
    try:
        parsed = urlsplit(location)
    except ValueError:  # brackets
        raise UserError(f"the artifact location 's3:…' is not a URL; {_RULE}") from None
    if "@" in location or parsed.query or parsed.fragment:
        raise UserError(
            "the artifact location 's3://…' holds more than a bucket and a prefix, credentials perhaps; "
            "write s3://BUCKET/PREFIX, and set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL"
        )
    if not _BUCKET.fullmatch(parsed.netloc):
        raise UserError(
            "the artifact location 's3://…' names no bucket where one belongs; write s3://BUCKET/PREFIX, "
            "and set AWS_ENDPOINT_URL to the address of the store"
        )
    return parsed.netloc, parsed.path

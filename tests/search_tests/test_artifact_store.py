"""A store that machines share, over a real server with the interface of S3: what comes is whole or not taken."""

import io
import json
import socket
import sys
import threading
import time
import uuid
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from search import stores
from search.artifacts import Artifacts, digest
from search.engine.artifact_store import open_artifacts
from search.errors import UserError
from search.manifests import MANIFEST

NEEDS_S3 = pytest.mark.skipif(
    find_spec("boto3") is None or find_spec("moto") is None or find_spec("flask") is None,
    reason='needs boto3 and a server to talk to: pip install boto3 "moto[server]"',
)
KEY = {"model": "x", "steps": 3}
NAME = f"thing-{digest(KEY)[:20]}"
SECRET = "hunter2"


def maker(calls: list[Path], text: str = "content"):
    def make(folder: Path) -> None:
        calls.append(folder)
        (folder / "file.txt").write_text(text)
        (folder / "empty").touch()

    return make


def forbidden(_: Path) -> None:
    raise AssertionError("it was made again")


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Credentials as a user sets them, and nothing from this machine's own settings."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    return monkeypatch


class Bucket:
    """A bucket of its own, and a look into it."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.name = f"bucket-{uuid.uuid4().hex}"
        self.url = f"s3://{self.name}/studies/a"
        self.client.create_bucket(Bucket=self.name)

    def objects(self) -> list[str]:
        found = self.client.list_objects_v2(Bucket=self.name).get("Contents", [])
        return [one["Key"] for one in sorted(found, key=lambda one: one["LastModified"])]

    def object(self, end: str) -> str:
        (name,) = [name for name in self.objects() if name.endswith(end)]
        return name

    def put(self, name: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=name, Body=content)

    def get(self, name: str) -> bytes:
        return self.client.get_object(Bucket=self.name, Key=name)["Body"].read()


@pytest.fixture(scope="module")
def client(address: str) -> Any:
    """A client of the server that is not ours."""
    import boto3

    own = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url=address, **own)


@pytest.fixture
def bucket(address: str, client: Any, settings: pytest.MonkeyPatch) -> Bucket:
    settings.setenv("AWS_ENDPOINT_URL", address)
    return Bucket(client)


@NEEDS_S3
def test_what_one_machine_made_another_fetches(bucket: Bucket, tmp_path: Path) -> None:
    first = open_artifacts(bucket.url, cache=tmp_path / "one").made("thing", KEY, maker([]))
    second = open_artifacts(bucket.url + "/", cache=tmp_path / "two").made("thing", KEY, forbidden)
    assert first.parent == tmp_path / "one"
    assert second.parent == tmp_path / "two"
    assert {file.name: file.read_bytes() for file in first.iterdir()} == {
        file.name: file.read_bytes() for file in second.iterdir()
    }
    assert [path.name for path in second.parent.iterdir() if path.is_dir()] == [NAME]
    assert open_artifacts(bucket.url, cache=tmp_path / "two").made("thing", KEY, forbidden) == second


@NEEDS_S3
def test_files_are_put_there_before_their_manifest(bucket: Bucket, tmp_path: Path) -> None:
    open_artifacts(bucket.url, cache=tmp_path).made("thing", KEY, maker([]))
    names = [name for name in bucket.objects() if not name.endswith("maker-1.json")]
    assert len(names) == 4
    assert all(name.startswith(f"studies/a/{NAME}/") for name in names)
    assert names[-1] == f"studies/a/{NAME}/{MANIFEST}"


@NEEDS_S3
@pytest.mark.parametrize("damage", ["changed", "deleted", "manifest torn", "manifest empty", "way out", "way down"])
def test_what_is_not_whole_in_the_store_is_made_again_and_mended(damage: str, bucket: Bucket, tmp_path: Path) -> None:
    open_artifacts(bucket.url, cache=tmp_path / "one").made("thing", KEY, maker([]))
    manifest = f"studies/a/{NAME}/{MANIFEST}"
    files = json.loads(bucket.get(manifest))
    if damage == "changed":
        bucket.put(bucket.object("file.txt"), b"contend")
    elif damage == "deleted":
        bucket.client.delete_object(Bucket=bucket.name, Key=bucket.object("file.txt"))
    elif damage == "manifest torn":
        bucket.put(manifest, bucket.get(manifest)[:-9])
    elif damage == "manifest empty":
        bucket.put(manifest, b"{}")
    else:
        name = "../x" if damage == "way out" else "../../two/thing/x"
        bucket.put(manifest, json.dumps({**files, name: files["file.txt"]}).encode())
        bucket.put(f"studies/a/{NAME}/{files['file.txt']}/{name}", b"content")
    calls: list[Path] = []
    two = open_artifacts(bucket.url, cache=tmp_path / "two")
    assert two.found("thing", digest(KEY)) is None
    made = two.made("thing", KEY, maker(calls))
    assert len(calls) == 1
    assert (made / "file.txt").read_text() == "content"
    assert [path for path in tmp_path.rglob("x") if path.is_file()] == []
    assert open_artifacts(bucket.url, cache=tmp_path / "three").found("thing", digest(KEY)) is not None


@NEEDS_S3
def test_an_interrupted_upload_is_not_taken_and_goes_on(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from search.engine.s3 import S3Store

    one = open_artifacts(bucket.url, cache=tmp_path / "one")
    write_new = S3Store.write_new

    def interrupted(store: S3Store, name: str, file: Path) -> bool:
        if name.endswith(MANIFEST):
            raise KeyboardInterrupt
        return write_new(store, name, file)

    with monkeypatch.context() as patch:
        patch.setattr(S3Store, "write_new", interrupted)
        with pytest.raises(KeyboardInterrupt):
            one.made("thing", KEY, maker([]))
    assert len(bucket.objects()) == 4  # the files and who made them, and no manifest
    two = open_artifacts(bucket.url, cache=tmp_path / "two")
    assert two.found("thing", digest(KEY)) is None
    one.made("thing", KEY, forbidden)  # it is whole here: only the upload goes on
    assert two.made("thing", KEY, forbidden).parent == tmp_path / "two"


@NEEDS_S3
def test_of_machines_that_start_together_one_makes_it(bucket: Bucket, tmp_path: Path) -> None:
    calls, made, waited = list[Path](), list[Path](), list[str]()

    def slow(folder: Path) -> None:
        time.sleep(1.0)
        maker(calls)(folder)

    def start(machine: int) -> None:
        artifacts = open_artifacts(bucket.url, cache=tmp_path / str(machine))
        made.append(artifacts.made("thing", KEY, slow, on_wait=waited.append))

    threads = [threading.Thread(target=start, args=(machine,)) for machine in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert waited
    assert sorted(folder.parent.name for folder in made) == ["0", "1", "2"]
    assert {(folder / "file.txt").read_text() for folder in made} == {"content"}


@NEEDS_S3
def test_of_two_makers_the_first_one_counts_for_both(bucket: Bucket, tmp_path: Path) -> None:
    """A maker that was held up for so long that another one took over finds that one's thing there."""
    from search.engine.s3 import S3Store

    def overtaken(folder: Path) -> None:
        fast = Artifacts(tmp_path / "fast").made("thing", KEY, maker([], "fast"))
        assert stores.publish(S3Store(bucket.name, "studies/a"), fast, replace=False)
        maker([], "slow")(folder)

    slow = open_artifacts(bucket.url, cache=tmp_path / "slow").made("thing", KEY, overtaken)
    late = open_artifacts(bucket.url, cache=tmp_path / "late").found("thing", digest(KEY))
    assert late is not None
    assert (slow / "file.txt").read_text() == (late / "file.txt").read_text() == "fast"


@NEEDS_S3
def test_a_thing_of_this_machine_gives_way_to_the_stores(bucket: Bucket, tmp_path: Path) -> None:
    Artifacts(tmp_path / "one").made("thing", KEY, maker([], "mine"))
    open_artifacts(bucket.url, cache=tmp_path / "two").made("thing", KEY, maker([], "theirs"))
    made = open_artifacts(bucket.url, cache=tmp_path / "one").made("thing", KEY, forbidden)
    assert (made / "file.txt").read_text() == "theirs"


@NEEDS_S3
def test_who_joins_finds_a_thing_by_its_digest(bucket: Bucket, tmp_path: Path) -> None:
    two = open_artifacts(bucket.url, cache=tmp_path / "two")
    assert two.found("thing", digest(KEY)) is None
    assert not (tmp_path / "two").exists()
    open_artifacts(bucket.url, cache=tmp_path / "one").made("thing", KEY, maker([]))
    found = two.found("thing", digest(KEY))
    assert found is not None
    assert found.parent == tmp_path / "two"
    assert (found / "file.txt").read_text() == "content"
    assert two.found("other", digest(KEY)) is None


@NEEDS_S3
def test_a_broken_transfer_is_tried_again(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file ends up whole, without what came before the break."""
    from botocore.exceptions import ReadTimeoutError
    from optuna.artifacts import Boto3ArtifactStore

    whole = Boto3ArtifactStore.open_reader
    breaks = iter([True, False, False, True, True, False, False])  # manifest, empty, file.txt, key.json

    class Torn(io.BytesIO):
        def read(self, *_: Any) -> bytes:
            if self.tell():
                raise ReadTimeoutError(endpoint_url="http://x")
            return super().read(1)

    def sometimes(self: Boto3ArtifactStore, artifact_id: str) -> Any:
        body = whole(self, artifact_id)
        return Torn(body.read()) if next(breaks) else body

    open_artifacts(bucket.url, cache=tmp_path / "one").made("thing", KEY, maker([]))
    monkeypatch.setattr(Boto3ArtifactStore, "open_reader", sometimes)
    monkeypatch.setattr("search.engine.s3.PAUSES_S", (0.0, 0.0))
    assert open_artifacts(bucket.url, cache=tmp_path / "two").made("thing", KEY, forbidden)
    assert list(breaks) == []


@NEEDS_S3
def test_a_store_that_is_away_for_a_moment_is_waited_for(
    bucket: Bucket, tmp_path: Path, settings: pytest.MonkeyPatch
) -> None:
    from moto.server import ThreadedMotoServer

    open_artifacts(bucket.url, cache=tmp_path / "one").made("thing", KEY, maker([]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    late = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)  # shares what the other one keeps
    timer = threading.Timer(0.2, late.start)
    timer.start()
    try:
        assert open_artifacts(bucket.url, cache=tmp_path / "two").found("thing", digest(KEY))
    finally:
        timer.join()
        late.stop()


@NEEDS_S3
def test_a_store_without_conditional_writes_serves_too(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.exceptions import ClientError

    artifacts = open_artifacts(bucket.url, cache=tmp_path / "one")

    def refuse(**_: Any) -> None:
        raise ClientError({"Error": {"Code": "NotImplemented"}}, "PutObject")

    client = artifacts._store._client  # the client makes its methods itself: there is no class to patch
    put = client.put_object
    monkeypatch.setattr(client, "put_object", lambda **given: refuse() if "IfNoneMatch" in given else put(**given))
    artifacts.made("thing", KEY, maker([]))
    assert open_artifacts(bucket.url, cache=tmp_path / "two").found("thing", digest(KEY))


@NEEDS_S3
def test_a_bucket_that_does_not_exist_is_not_an_empty_one(bucket: Bucket, tmp_path: Path) -> None:
    artifacts = open_artifacts("s3://no-such-bucket/a", cache=tmp_path / "cache")
    for use in (
        lambda: artifacts.made("thing", KEY, forbidden),
        lambda: artifacts.found("thing", digest(KEY)),
        artifacts.check_writable,
    ):
        with pytest.raises(UserError, match=r"'s3://no-such-bucket/a' cannot be used \(.*NoSuchBucket.*check"):
            use()
    assert not (tmp_path / "cache").exists()
    open_artifacts(bucket.url, cache=tmp_path / "cache").check_writable()
    assert not (tmp_path / "cache").exists()


@NEEDS_S3
def test_an_endpoint_that_does_not_answer_is_said_within_seconds(settings: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings.setenv("AWS_ENDPOINT_URL", f"http://user:{SECRET}@127.0.0.1:9")
    start = time.perf_counter()
    with pytest.raises(UserError, match=r"'s3://bucket/a' cannot be used \(Could not connect") as caught:
        open_artifacts("s3://bucket/a", cache=tmp_path / "cache").made("thing", KEY, forbidden)
    assert time.perf_counter() - start < 15
    assert SECRET not in str(caught.value)
    assert not (tmp_path / "cache").exists()


@NEEDS_S3
def test_settings_of_boto3_that_cannot_be_used_are_said(settings: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9000")
    with pytest.raises(UserError, match=r"cannot be used \(Invalid endpoint: 127"):
        open_artifacts("s3://bucket/a", cache=tmp_path)
    settings.delenv("AWS_ENDPOINT_URL")
    settings.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UserError, match=r"cannot be used \(The config profile \(nobody\)"):
        open_artifacts("s3://bucket/a", cache=tmp_path)
    settings.delenv("AWS_PROFILE")
    settings.delenv("AWS_ACCESS_KEY_ID")
    settings.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match=r"cannot be used \(Unable to locate credentials"):
        open_artifacts("s3://bucket/a", cache=tmp_path).check_writable()


@NEEDS_S3
def test_others_wait_while_one_of_this_machine_fetches(bucket: Bucket, tmp_path: Path) -> None:
    open_artifacts(bucket.url, cache=tmp_path / "one").made("thing", KEY, maker([]))
    found: list[Path] = []

    def ask() -> None:
        found.append(open_artifacts(bucket.url, cache=tmp_path / "two").made("thing", KEY, forbidden))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [tmp_path / "two" / NAME] * 3


def test_without_boto3_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    monkeypatch.delitem(sys.modules, "search.engine.s3", raising=False)
    with pytest.raises(UserError, match=r'pip install "paretobert\[s3\]"'):
        open_artifacts("s3://bucket/a", cache=tmp_path)


@pytest.mark.parametrize(
    ("location", "part"),
    [
        ("", "is empty"),
        (f"s3://key:{SECRET}@bucket/a", "credentials perhaps"),
        (f"s3://key:{SECRET}/bucket", "names no bucket"),
        (f"s3://bucket/a?secret={SECRET}", "credentials perhaps"),
        (f"s3://bucket/a#{SECRET}", "credentials perhaps"),
        (f"https://me:{SECRET}@host/bucket", "the scheme 'https', which is not known"),
        (f"gs://{SECRET}/a", "the scheme 'gs'"),
        ("s3:bucket", "names no bucket"),
        ("s3://", "names no bucket"),
        ("s3://[x/a", "is not a URL"),
    ],
)
def test_a_location_that_is_none_is_refused_without_its_secrets(location: str, part: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="s3://BUCKET/PREFIX") as caught:
        open_artifacts(location, cache=tmp_path)
    assert part in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("location", ["runs/a", "a:b", "C:\\runs"])
def test_every_other_location_is_a_folder(location: str, tmp_path: Path) -> None:
    assert open_artifacts(location, cache=tmp_path).folder == Path(location)

"""The status file: whole or not there, private, and no older than its publisher."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
from statuses import make_status

from ghostserve.errors import ConfigError
from ghostserve.vllm.status_file import (
    ENVIRONMENT,
    StatusPublisher,
    default_status_path,
    read_status,
    status_path,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "private" / "status.json"


def test_what_is_published_is_read_until_it_is_closed(path: Path) -> None:
    publisher = StatusPublisher(path)
    assert read_status(path) is None
    publisher.publish(make_status())
    assert read_status(path) == make_status()
    publisher.publish(make_status("recovering"))
    assert read_status(path) == make_status("recovering")
    assert [file.name for file in path.parent.iterdir()] == ["status.json"]
    publisher.close()
    publisher.close()
    assert read_status(path) is None
    assert list(path.parent.iterdir()) == []


def test_it_is_private_whatever_the_umask(path: Path) -> None:
    before = os.umask(0)
    try:
        StatusPublisher(path).publish(make_status())
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_folder_that_was_cleaned_away_comes_back(path: Path) -> None:
    publisher = StatusPublisher(path)
    path.parent.rmdir()
    publisher.publish(make_status())
    assert read_status(path) == make_status()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_readers_never_see_a_part(path: Path) -> None:
    publisher = StatusPublisher(path)
    publisher.publish(make_status(step=0))
    stop = threading.Event()

    def publish() -> None:
        step = 0
        while not stop.is_set():
            step += 1
            publisher.publish(make_status(step=step))

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        seen = [read_status(path) for _ in range(3000)]
    finally:
        stop.set()
        thread.join()
    assert None not in seen
    assert len({status.step for status in seen if status}) > 1


@pytest.mark.parametrize("content", [b"", b"{", b'{"pid": 1}', b'{"pid": 99999999999999999999, "status": {}}', b"\xff"])
def test_what_is_no_status_is_none(path: Path, content: bytes) -> None:
    StatusPublisher(path)
    path.write_bytes(content)
    assert read_status(path) is None


def test_a_dead_publishers_status_is_none(path: Path) -> None:
    StatusPublisher(path).publish(make_status())
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    published = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode(published | {"pid": process.pid}))
    assert read_status(path) is None
    path.write_bytes(msgspec.json.encode(published))
    assert read_status(path) == make_status()


def test_links_and_pipes_are_not_read(path: Path, tmp_path: Path) -> None:
    StatusPublisher(path).publish(make_status())
    link = tmp_path / "link"
    link.symlink_to(path)
    assert read_status(link) is None
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert read_status(pipe) is None  # and does not wait for a writer


def test_another_users_file_is_not_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    StatusPublisher(path).publish(make_status())
    monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
    assert read_status(path) is None
    with pytest.raises(ConfigError, match="must be a folder that user"):
        StatusPublisher(path)


def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match="nobody else can write to"):
        StatusPublisher(tmp_path / "status.json")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="can't be made"):
        StatusPublisher(tmp_path / "file" / "folder" / "status.json")


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert status_path(None, "7") == default_status_path("7") == tmp_path / "ghostserve" / "7.json"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "gone"))
    assert default_status_path("7").parent.name == f"ghostserve-{os.getuid()}"
    monkeypatch.setenv(ENVIRONMENT, "/run/inherited.json")
    assert status_path(None, "7") == Path("/run/inherited.json")
    assert status_path("/run/configured.json", "7") == Path("/run/configured.json")

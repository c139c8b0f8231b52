"""Key files: read, followed through every kind of replacement, and kept where the new content is none."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

import pytest

from relay import keyfile
from relay.keyfile import KeyFile, follow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text("secret-a\n")
    return file


def loaded(path: Path) -> KeyFile:
    file = KeyFile(path)
    assert file.load()
    return file


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        (b"secret-a", ["secret-a"]),
        (b"secret-a\nclient-b\n", ["secret-a", "client-b"]),
        (b"\n  # ours\n\tsecret-a \r\n\r\n#secret-x\nclient-b\r\n", ["secret-a", "client-b"]),
        (b"\xef\xbb\xbfsecret-a\n", ["secret-a"]),
        (b"secret-a\nsecret-a\n", ["secret-a"]),
        (b"\xff\xfe\nsecret-a\n", ["\ufffd\ufffd", "secret-a"]),
    ],
)
def test_keys_stand_one_a_line(path: Path, content, keys):
    path.write_bytes(content)
    file = loaded(path)
    assert file.first == keys[0]
    assert file.keys == set(keys)


def test_an_unchanged_file_is_not_read_again(path: Path):
    file = loaded(path)
    path.chmod(0)  # root reads all the same; what counts is the answer
    path.chmod(0o600)
    assert not file.load()
    assert not file.load()


def test_a_new_first_key_is_a_change_even_among_the_same_keys(path: Path):
    path.write_text("a\nb\n")
    file = loaded(path)
    path.write_text("b\na\n\n")
    assert file.load()
    assert file.first == "b"


def test_a_file_put_in_its_place_is_seen_though_it_has_the_same_size_and_time(path: Path):
    file = loaded(path)
    before = path.stat()
    other = path.with_name("new")
    other.write_text("secret-b\n")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)
    assert file.load()
    assert file.keys == {"secret-b"}


def test_a_symlink_swapped_above_the_file_is_seen(tmp_path: Path):
    for version in ("1", "2"):
        (tmp_path / f"..v{version}").mkdir()
        (tmp_path / f"..v{version}" / "keys").write_text(f"secret-{version}\n")
    (tmp_path / "..data").symlink_to("..v1")
    (tmp_path / "keys").symlink_to("..data/keys")
    file = loaded(tmp_path / "keys")
    assert file.first == "secret-1"
    (tmp_path / "..data_tmp").symlink_to("..v2")
    (tmp_path / "..data_tmp").replace(tmp_path / "..data")
    assert file.load()
    assert file.keys == {"secret-2"}


def gone(path: Path) -> None:
    path.unlink()


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def only_comments(path: Path) -> None:
    path.write_bytes(b"# soon\n\n")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(keyfile.KEYS_BYTES_MAX + 1)


@pytest.mark.parametrize("ruin", [gone, emptied, only_comments, a_folder, a_pipe, huge])
@pytest.mark.timeout(10)
def test_what_gives_no_keys_keeps_those_there_were_and_is_looked_at_again(path: Path, ruin):
    file = loaded(path)
    ruin(path)
    for _ in range(2):
        with pytest.raises(OSError, match=r".") as caught:
            file.load()
        assert caught.value.strerror
    assert (file.first, file.keys) == ("secret-a", {"secret-a"})
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    path.write_text("secret-b\n")
    assert file.load()
    assert file.first == "secret-b"


@contextlib.asynccontextmanager
async def following(file: KeyFile) -> AsyncIterator[asyncio.Event]:
    changed = asyncio.Event()
    task = asyncio.create_task(follow(file, changed.set, look_seconds=0.01))
    yield changed
    assert not task.done(), task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_following_tells_of_each_change_once_and_survives_a_file_that_is_gone(path: Path):
    file = await asyncio.to_thread(loaded, path)
    async with following(file) as changed:
        await asyncio.to_thread(path.unlink)
        await asyncio.sleep(0.1)
        assert not changed.is_set()
        assert file.keys == {"secret-a"}
        await asyncio.to_thread(path.write_text, "secret-b\n")
        async with asyncio.timeout(5):
            await changed.wait()
        assert file.keys == {"secret-b"}
        changed.clear()
        await asyncio.sleep(0.1)
        assert not changed.is_set()

"""A damaged log costs what lay in the damage and is announced; what crashes and power cuts leave is no damage."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from daemon.harness import seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from relay.errors import ChunkCorrupt, StoreFailed, StoreFull
from relay.spool import logcheck, salvage
from relay.spool.record import Record, decode, encode
from relay.spool.store import FILE_NAME, Changes, Row, Store
from relay.spool.table import PAGE_BYTES, ChunkTable
from relay.spool.wal import FRAME_HEADER_BYTES, HEADER_BYTES, Known, Log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random

LOG, INDEX = FILE_NAME + "-wal", FILE_NAME + "-shm"
FRAME_BYTES = FRAME_HEADER_BYTES + PAGE_BYTES
SECTOR_BYTES = 512
OLD_INDEX = "index of some time ago"
COMMITS = 80
LOST_BY_A_FRAME_MAX = 5
"""A page of the table holds four of the chunks here, and one that begins in it may end in others."""


class Queue:
    """A store that is copied as a kill would leave it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.store = Store(folder, bytes_max=1 << 28)
        self.last = 0
        self.live: set[int] = set()

    def commit(self, chunks: int = 1, size: int = 900) -> None:
        """Commit some chunks."""
        new = range(self.last + 1, self.last + 1 + chunks)
        self.store.commit(Changes(lanes=[(1, "key")], rows=[chunk_row(number, size) for number in new]))
        self.last += chunks
        self.live |= {*new}

    def forget(self) -> None:
        """Delete the oldest third."""
        oldest = sorted(self.live)[: 1 + len(self.live) // 3]
        self.store.commit(Changes(deletes=oldest))
        self.live -= {*oldest}

    def roll_back(self) -> None:
        """Begin a transaction so large that SQLite writes half of it to the log, and give it up."""
        writer = self.store._table.writer
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("PRAGMA cache_spill=ON")
        writer.execute("INSERT INTO meta VALUES ('large', hex(randomblob(3000000)))")
        writer.execute("ROLLBACK")

    def copy(self, name: str) -> Path:
        """Copy the files as they are."""
        return Path(shutil.copytree(self.folder, self.folder.with_name(name)))


def chunk_row(number: int, size: int = 900) -> Row:
    text = b'{"eventName":"%s"}' % seeded(number).randbytes(size // 2).hex().encode()
    chunk = Record(key="key", envelope=b"", headers=b"", text=text, events=1, accepted_at_ms=1000, skew_ms=0)
    return Row(number, 1, 1, 1000, encode(chunk))


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    made = Queue(tmp_path / "queue")
    yield made
    made.store.close()


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A queue of so many commits, all of them in the log, as a kill leaves it."""
    made = Queue(tmp_path_factory.mktemp("killed") / "queue")
    for _ in range(5):
        made.commit()
    with contextlib.closing(sqlite3.connect(made.folder / FILE_NAME, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM lanes").fetchall()  # holds the log from being begun anew
        made.store.checkpoint()
        shutil.copyfile(made.folder / INDEX, made.folder.with_name(OLD_INDEX))
        for _ in range(COMMITS - 5):
            made.commit()
        folder = made.copy("killed")
    made.store.close()
    return folder


@contextlib.contextmanager
def copied(folder: Path) -> Iterator[Path]:
    """Give a copy for one example."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(shutil.copytree(folder, Path(name) / "queue"))


def overwrite(file: Path, at: int, data: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(at)
        opened.write(data)


@contextlib.contextmanager
def log_of(folder: Path) -> Iterator[Log]:
    descriptor = os.open(folder / LOG, os.O_RDONLY)
    try:
        yield Log(descriptor, Known.read(folder / INDEX))
    finally:
        os.close(descriptor)


def found_at_start(folder: Path) -> tuple[set[int], set[int], list[dict]]:
    """Open the queue: chunks that are whole, those that are known and not, and what the log says of it."""
    with capture_logs() as lines:
        store = Store(folder, bytes_max=1 << 28)
    whole, broken = set(), set()
    try:
        for number, (lane, data) in store.read([entry.id for entry in store.entries(0, 1 << 40, 1 << 20)]).items():
            try:
                assert decode(number, lane, data).text() in chunk_row(number).data
                whole.add(number)
            except ChunkCorrupt:
                broken.add(number)
    finally:
        store.close()
    assert {line["event"] for line in lines} <= {"queue_file_salvaged"}
    return whole, broken, lines


def is_called_damaged(folder: Path) -> bool:
    """Whether the log is; both ways of looking agree."""
    read = logcheck.read(folder)
    assert logcheck.look(folder) == read
    return bool(read)


anywhere = st.integers(0, 1 << 30)
in_a_frame_header = st.builds(
    lambda frame, at: HEADER_BYTES + frame * FRAME_BYTES + at,
    st.integers(0, 2 * COMMITS),
    st.integers(0, FRAME_HEADER_BYTES - 1),
)
garbage = st.tuples(anywhere | in_a_frame_header, st.sampled_from([1, 100, SECTOR_BYTES, PAGE_BYTES]), st.randoms())


@settings(max_examples=50, deadline=None)
@given(places=st.lists(garbage, min_size=1, max_size=6))
def test_garbage_in_the_log_costs_what_lay_in_it_and_is_announced(killed: Path, places: list[tuple[int, int, Random]]):
    with copied(killed) as folder:
        hit = set()
        size = (folder / LOG).stat().st_size
        for place, count, random in places:
            at = place % size
            data = random.randbytes(count)[: size - at]
            hit |= {(at + n - HEADER_BYTES) // FRAME_BYTES for n in range(0, len(data), 64)}
            overwrite(folder / LOG, at, data)
        whole, broken, said = found_at_start(folder)
        hit |= {frame + 1 for frame in hit}
        lost = set(range(1, COMMITS + 1)) - whole
        assert len(lost) <= LOST_BY_A_FRAME_MAX * len(hit)
        assert lost == broken or sum(line["lost_frames"] for line in said) > 0
        assert len(said) <= 1


@settings(max_examples=50, deadline=None)
@given(place=garbage, old=st.booleans())
def test_without_the_index_only_the_last_commits_can_be_lost_without_a_word(
    killed: Path, place: tuple[int, int, Random], *, old: bool
):
    """So it is after a power cut: what damage hides cannot be told from a last transaction that was cut off.

    What the disk has of the index then may be old, of a time when the database had all that was in the log.
    """
    with copied(killed) as folder:
        (folder / INDEX).unlink()
        if old:
            shutil.copyfile(killed.with_name(OLD_INDEX), folder / INDEX)
        at, count, random = place
        at %= (folder / LOG).stat().st_size - count
        overwrite(folder / LOG, at, random.randbytes(count))
        whole, broken, said = found_at_start(folder)
        lost = set(range(1, COMMITS + 1)) - whole
        assert len(lost) <= 4 * LOST_BY_A_FRAME_MAX
        assert said or lost <= broken | set(range(COMMITS - 3, COMMITS + 1))


@given(places=st.lists(garbage, max_size=3))
def test_sqlite_and_we_count_the_same_frames(killed: Path, places: list[tuple[int, int, Random]]):
    with copied(killed) as folder:
        for at, count, random in places:
            overwrite(folder / LOG, at % (folder / LOG).stat().st_size, random.randbytes(count))
        with log_of(folder) as log:
            assert logcheck._taken(folder, log) == log.taken()


DO: dict[str, Callable[[Queue], None]] = {
    "commit": Queue.commit,
    "commit much": lambda queue: queue.commit(chunks=40),
    "forget": Queue.forget,
    "roll back": Queue.roll_back,
    "checkpoint": lambda queue: queue.store.checkpoint(),
    "reopen": lambda queue: queue.store.reopen(),
}
steps = st.sampled_from(["commit", *DO])


@settings(max_examples=60, deadline=None)
@given(
    script=st.lists(steps, max_size=20), last=st.sampled_from(["commit", "commit much", "forget"]), chosen=st.randoms()
)
def test_what_kills_and_power_cuts_leave_is_not_called_damage(script: list[str], last: str, chosen: Random):
    with tempfile.TemporaryDirectory() as name:
        queue = Queue(Path(name) / "queue")
        for step in [*script, "commit"]:
            DO[step](queue)
        before, stored = queue.copy("before"), set(queue.live)
        DO[last](queue)
        after = queue.copy("after")
        for folder in (before, after, *cut_off(before, after, chosen)):
            assert not is_called_damaged(folder)
            whole, broken, said = found_at_start(folder)
            assert (broken, said) == (set(), [])
            assert stored & queue.live <= whole <= stored | queue.live
        queue.store.close()


def cut_off(before: Path, after: Path, random: Random) -> Iterator[Path]:
    """Give folders in which of the last transaction some sectors reached the disk, with the index of before or none.

    The header of a log that is begun anew is on the disk before the first frame is written.
    """
    old, new = (before / LOG).read_bytes(), (after / LOG).read_bytes()
    base = new[:HEADER_BYTES] + old[HEADER_BYTES:]
    mixed = bytearray(base.ljust(len(new), b"\0"))
    for at in range(0, len(new), SECTOR_BYTES):
        if random.random() < 0.5:
            mixed[at : at + SECTOR_BYTES] = new[at : at + SECTOR_BYTES]
    for number, log in enumerate((base, mixed)):
        folder = Path(shutil.copytree(before, before.with_name(f"cut-{number}")))
        (folder / LOG).write_bytes(log)
        if random.random() < 0.5:
            (folder / INDEX).unlink()
        yield folder


def test_an_index_that_was_cut_off_or_changed_says_nothing(killed: Path):
    with copied(killed) as folder:
        index = folder / INDEX
        known = Known.read(index)
        with log_of(folder) as log:
            assert known is not None
            assert known.frames == log.taken() == log.committed() > COMMITS
        raw = index.read_bytes()
        for at in (0, 12, 16, 32, 40, 48, 64, 95):
            overwrite(index, at, bytes([raw[at] ^ 1]))
            assert Known.read(index) is None
            overwrite(index, at, raw[at : at + 1])
        for at in (16, 64):  # in both of its copies
            overwrite(index, at, bytes([raw[at] ^ 1]))
        assert Known.read(index) is None
        os.truncate(index, 99)
        assert Known.read(index) is None


def test_empty_short_and_absent_logs_are_no_damage(queue: Queue):
    queue.commit()
    queue.store.close()
    queue.store = Store(queue.folder, bytes_max=1 << 28)
    for length in (None, 0, 1, HEADER_BYTES, HEADER_BYTES + FRAME_HEADER_BYTES):
        folder = queue.copy(f"length-{length}")
        (folder / INDEX).unlink()
        (folder / LOG).unlink()
        if length is not None:
            (folder / LOG).write_bytes(b"\0" * length)
        assert not is_called_damaged(folder)
        assert found_at_start(folder) == ({1}, set(), [])


@pytest.mark.parametrize("length", [0, HEADER_BYTES, HEADER_BYTES + 20 * FRAME_BYTES])
def test_a_log_that_was_cut_loses_what_it_held_but_not_without_a_word(killed: Path, length: int):
    with copied(killed) as folder:
        os.truncate(folder / LOG, length)
        _, _, (said,) = found_at_start(folder)
        assert said["lost_frames"] > 0


def test_a_queue_whose_database_is_gone_is_made_anew_from_its_log(killed: Path):
    for harm in (Path.unlink, lambda file: os.truncate(file, 0)):
        with copied(killed) as folder:
            harm(folder / FILE_NAME)
            whole, _, said = found_at_start(folder)
            assert (len(whole), len(said)) == (COMMITS, 1)


def test_a_healthy_log_beside_a_damaged_database_is_not_called_damaged(killed: Path):
    for page in (0, 1):
        with copied(killed) as folder:
            overwrite(folder / FILE_NAME, page * PAGE_BYTES, os.urandom(PAGE_BYTES))
            assert not is_called_damaged(folder)
            assert len(found_at_start(folder)[0]) == COMMITS


def test_a_kill_before_the_emptied_log_has_a_new_index_is_not_called_damage(killed: Path):
    class Killed(Exception):
        pass

    def open_table(*_: object, **__: object) -> ChunkTable:
        raise Killed

    with copied(killed) as folder:
        with pytest.raises(Killed):
            Store(folder, bytes_max=1 << 28, open_table=open_table)
        assert not is_called_damaged(folder)
        assert len(found_at_start(folder)[0]) == COMMITS


def test_frames_of_old_are_not_brought_back(queue: Queue):
    """Begun anew, a log is written over frames of old: here they are many, and older states of the same pages."""
    for _ in range(20):
        queue.commit()
    queue.store.checkpoint()
    queue.forget()
    for _ in range(5):
        queue.commit()
    folder = queue.copy("killed")
    assert not is_called_damaged(folder)
    overwrite(folder / LOG, HEADER_BYTES + FRAME_HEADER_BYTES, b"garbage")
    whole, _, said = found_at_start(folder)
    assert len(said) == 1
    assert whole <= queue.live, "what was deleted came back"


def test_damage_in_a_log_that_the_database_has_taken_up_loses_nothing(queue: Queue):
    """SQLite would hide newer pages of the database behind the older states of them in what it takes of the log."""
    for _ in range(30):
        queue.commit()
    queue.store.checkpoint()
    folder = queue.copy("killed")
    overwrite(folder / LOG, HEADER_BYTES + 12 * FRAME_BYTES + 100, b"garbage")
    whole, broken, (said,) = found_at_start(folder)
    assert (whole, broken, said["lost_frames"]) == (queue.live, set(), 0)


def test_what_was_never_committed_stays_out_when_a_log_is_mended(queue: Queue):
    for _ in range(10):
        queue.commit()
    queue.roll_back()
    folder = queue.copy("killed")
    (folder / INDEX).unlink()
    with log_of(folder) as log:
        assert log.frames > log.committed() + 100, "nothing was left behind"
    overwrite(folder / LOG, HEADER_BYTES + 12 * FRAME_BYTES + 100, b"garbage")
    with log_of(folder) as log:
        lost = log.rescue(folder / "mended")
        assert lost == 1
        assert (folder / "mended").stat().st_size == log.end_of(log.committed() - lost)
    assert len(found_at_start(folder)[0]) >= 10 - LOST_BY_A_FRAME_MAX


def test_a_header_that_was_cut_off_as_the_log_began_anew_loses_nothing_and_brings_nothing_back(queue: Queue):
    for _ in range(10):
        queue.commit()
    queue.forget()
    queue.store.checkpoint()
    for index in (True, False):
        folder = queue.copy(f"index-{index}")
        overwrite(folder / LOG, 16, os.urandom(8))
        if not index:
            (folder / INDEX).unlink()
        whole, broken, said = found_at_start(folder)
        assert (whole, broken) == (queue.live, set())
        assert not (index and said), "the index says that the database has it all"


def test_a_torn_end_is_cut_off_or_it_would_look_like_a_later_transaction(queue: Queue):
    for _ in range(10):
        queue.commit()
    end = (queue.folder / LOG).stat().st_size
    queue.commit(chunks=40)
    folder = queue.copy("killed")
    (folder / INDEX).unlink()
    overwrite(folder / LOG, end + FRAME_HEADER_BYTES, b"never written")
    assert logcheck.look(folder) == ""
    assert (folder / LOG).stat().st_size == end


@pytest.mark.parametrize("index", [True, False])
def test_a_crash_at_any_step_of_mending_a_log_loses_nothing_more(killed: Path, *, index: bool):
    """Each change to the folder is a step; what lies in it then is what the next start finds."""
    with copied(killed) as folder:
        overwrite(folder / LOG, HEADER_BYTES + 100 * FRAME_BYTES + 100, b"garbage")
        if not index:
            (folder / INDEX).unlink()
        copies: list[Path] = []

        class Spying(type(folder)):
            def _seen(self) -> None:
                copies.append(folder.with_name(f"crash-{len(copies)}"))
                shutil.copytree(folder, copies[-1])

            def rename(self, target: object) -> object:
                done = super().rename(target)
                self._seen()
                return done

            def hardlink_to(self, target: object) -> None:
                super().hardlink_to(target)
                self._seen()

            def unlink(self, *, missing_ok: bool = False) -> None:
                if self.exists():
                    super().unlink(missing_ok=missing_ok)
                    self._seen()

        assert logcheck.look(Spying(folder))
        logcheck.mend(Spying(folder))
        assert len(copies) > 10
        for copy in copies:
            whole, broken, _ = found_at_start(copy)
            assert len(whole) >= COMMITS - LOST_BY_A_FRAME_MAX
            assert len(whole | broken) == COMMITS


class FullDisk(ChunkTable):
    """A disk without room for a second file."""

    def add_schema(self) -> None:
        super().add_schema()
        if self.db_file_name == salvage.FILLING_NAME:
            raise StoreFull("no room")


def test_without_room_for_a_second_file_the_queue_runs_with_what_sqlite_takes_and_the_log_is_kept(killed: Path):
    with copied(killed) as folder:
        overwrite(folder / LOG, HEADER_BYTES + 100 * FRAME_BYTES + 100, b"garbage")
        damaged = (folder / LOG).read_bytes()
        with capture_logs() as lines:
            store = Store(folder, bytes_max=1 << 28, open_table=FullDisk)
        assert 0 < len(store.entries(0, 1 << 40, 1000)) < COMMITS
        store.close()
        assert [line["event"] for line in lines] == ["queue_log_not_salvaged"]
        (aside,) = folder.glob(salvage.ASIDE_NAME + "*")
        assert aside.read_bytes() == damaged
        assert {file.name for file in folder.iterdir()} == {FILE_NAME, aside.name}


@pytest.mark.parametrize("damaged", [False, True])
def test_a_file_system_without_hard_links_blocks_no_start(killed: Path, *, damaged: bool):
    class Linkless(type(killed)):
        def hardlink_to(self, target: object) -> None:
            raise PermissionError(f"{self} cannot be linked to {target}")

    with copied(killed) as folder:
        if damaged:
            overwrite(folder / LOG, HEADER_BYTES + 100 * FRAME_BYTES + 100, b"garbage")
        with capture_logs() as lines:
            store = Store(Linkless(folder), bytes_max=1 << 28)
        assert (len(store.entries(0, 1 << 40, 1000)) < COMMITS) == damaged
        store.close()
        assert [line["event"] for line in lines] == ["queue_log_not_salvaged"] * damaged


def test_a_log_that_cannot_be_read_blocks_no_start(tmp_path: Path):
    (tmp_path / INDEX).mkdir()
    with capture_logs() as lines, pytest.raises(StoreFailed, match="opening"):
        Store(tmp_path, bytes_max=1 << 28)
    assert [line["event"] for line in lines] == ["queue_log_not_salvaged"], "SQLite was not asked"


def test_a_healthy_start_reads_the_log_in_no_time(queue: Queue, figure: Callable[[str], None]):
    queue.store._table.writer.execute("PRAGMA wal_autocheckpoint=0")
    for _ in range(8):
        queue.commit(chunks=2000, size=2000)
    folder = queue.copy("killed")
    best = 1.0
    for _ in range(5):
        began = time.perf_counter()
        assert logcheck.look(folder) == ""
        best = min(best, time.perf_counter() - began)
    megabytes = (folder / LOG).stat().st_size / 1e6
    figure(f"looking at a healthy log of {megabytes:.0f} MB before it is opened: {best * 1000:.0f} ms")
    assert best < 0.25

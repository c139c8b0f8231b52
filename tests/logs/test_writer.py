"""Lines reach the stream from a thread of their own, in order, bounded, and never at the cost of whoever logs."""

import io
import os
import subprocess
import sys
import threading
import time

from relay.logs.writer import LineWriter


class GatedStream(io.StringIO):
    """A stream whose writes wait for a gate."""

    def __init__(self):
        super().__init__()
        self.gate = threading.Event()
        self.waiting = threading.Event()

    def write(self, text):
        self.waiting.set()
        self.gate.wait()
        return super().write(text)


def nothing():
    pass


def test_lines_are_written_in_order_and_completely_when_it_closes():
    stream = io.StringIO()
    writer = LineWriter(stream, tidy=nothing)
    for number in range(3000):
        writer.put(f"line {number}")
    writer.close()
    assert stream.getvalue().splitlines() == [f"line {number}" for number in range(3000)]


def test_a_line_is_written_without_waiting_for_the_next():
    reading, writing = os.pipe()
    with os.fdopen(reading, encoding="utf-8") as pipe, os.fdopen(writing, "w", encoding="utf-8") as stream:
        writer = LineWriter(stream, tidy=nothing)
        writer.put("now")
        assert pipe.readline() == "now\n"
        writer.close()


def test_a_stream_that_hangs_never_holds_up_who_logs_and_what_finds_no_room_is_counted():
    stream = GatedStream()
    writer = LineWriter(stream, tidy=nothing, lines_max=100)
    writer.put("first")
    assert stream.waiting.wait(5)
    started = time.perf_counter()
    for number in range(1000):
        writer.put(f"line {number}")
    assert time.perf_counter() - started < 1
    assert writer.take_dropped() == 900
    assert writer.take_dropped() == 0
    stream.gate.set()
    writer.close()
    assert stream.getvalue().splitlines() == ["first", *(f"line {number}" for number in range(100))]


def test_lines_to_a_stream_that_is_gone_are_counted_and_the_thread_lives_on():
    reading, writing = os.pipe()
    os.close(reading)
    tidied = threading.Semaphore(0)
    with os.fdopen(writing, "w", encoding="utf-8") as stream:
        writer = LineWriter(stream, tidy=tidied.release)
        for _ in range(2):
            writer.put("lost")
            assert tidied.acquire(timeout=5)
        assert writer.take_dropped() == 2
        writer.close()


def test_what_tidying_puts_is_written_even_at_the_end():
    stream = io.StringIO()
    writer = LineWriter(stream, tidy=lambda: writer.put("tidied"))
    writer.put("line")
    time.sleep(0)
    writer.close()
    assert stream.getvalue().startswith("line\n")
    assert stream.getvalue().endswith("tidied\n")


def test_a_pipe_that_is_not_blocking_gets_every_line():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    received = []
    with os.fdopen(reading, encoding="utf-8") as pipe, os.fdopen(writing, "w", encoding="utf-8") as stream:
        reader = threading.Thread(target=lambda: received.extend(pipe.read().splitlines()))
        writer = LineWriter(stream, tidy=nothing)
        for number in range(1000):
            writer.put(f"{number} " + "x" * 500)
        while writer._lines.qsize():
            time.sleep(0.001)
        reader.start()
        writer.close()
        stream.close()
        reader.join()
    assert [line.partition(" ")[0] for line in received] == [str(number) for number in range(1000)]


def test_a_reader_that_has_stopped_does_not_keep_the_process_alive():
    code = (
        "import structlog; from relay.logs import configure_logs; configure_logs('info', 'json')\n"
        "log = structlog.get_logger()\n"
        "for number in range(4000): log.info('filling_the_pipe', number=number, note='x' * 200)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as process:
        assert process.wait(timeout=20) == 0  # nobody reads its stderr

"""The image, built from its recipe and run: fed, checked, stopped, started again; no shell, read-only but its queue.

No registry is asked: the base that the recipe names is one of Debian's own, made here by debootstrap.

    debootstrap ──► python:… ──buildah, deploy/docker/Dockerfile──► event-relay ──runc──► a container without a network
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(420)]

BASE_SECONDS_MAX = 240
BUILD_SECONDS_MAX = 240
PROGRAMS = {"buildah": "buildah", "runc": "runc", "debootstrap": "debootstrap"}
FROM_THE_MACHINE = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pip.conf", f"{Path.home()}/.config/pip/pip.conf")
"""How this machine reaches a package index; the build has to go the same way."""
POST = """
from http.client import HTTPConnection
connection = HTTPConnection("127.0.0.1", 9463, timeout=10)
connection.request("POST", "/v1/log_event", '{"events": [{"eventName": "%s"}]}', {"statsig-api-key": "secret-k"})
answer = connection.getresponse()
print(answer.status, answer.read().decode())
"""


def call(*words: str | Path, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, words)], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=seconds, check=False
    )


class Builder:
    """buildah with a store of its own, which ends with the folder it lies in."""

    def __init__(self, folder: Path) -> None:
        self._words = ("--root", folder / "images", "--runroot", folder / "run", "--storage-driver", "vfs")

    def __call__(self, verb: str, *words: str | Path, seconds: float = 60) -> str:
        done = self.tried(verb, *words, seconds=seconds)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        return done.stdout.strip()

    def tried(self, verb: str, *words: str | Path, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        return call("buildah", *self._words, verb, *words, seconds=seconds)


class Image:
    """What was built: its settings, and a root folder to run."""

    def __init__(self, config: dict[str, Any], rootfs: Path, build_seconds: float) -> None:
        self.config, self.rootfs, self.build_seconds = config, rootfs, build_seconds


class Container:
    """A running container of the image."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path, image: Image) -> None:
        self.name, self.process, self._log, self._image = name, process, log, image

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a program inside, as `docker exec` does."""
        return call("runc", "exec", self.name, *words)

    def post(self, event: str) -> str:
        done = self.call("python", "-c", POST % event)
        return done.stdout + done.stderr

    def healthy(self) -> bool:
        kind, *words = self._image.config["Healthcheck"]["Test"]
        assert kind == "CMD"  # no shell
        return self.call(*words).returncode == 0

    def status(self) -> dict[str, Any]:
        done = self.call("relay", "status", "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)["snapshot"]["queue"]
        return found

    def wait(self, what: str, holds: Callable[[], bool], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}\n{self.log}"
            time.sleep(0.2)

    def stop(self) -> int:
        """Send the image's stop signal, and give the exit code."""
        call("runc", "kill", self.name, self._image.config["StopSignal"])
        return self.process.wait(30)


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    if os.geteuid() != 0:
        pytest.skip("building and running an image here needs root")
    missing = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (Debian packages)")
    return Builder(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def base(builder: Builder, root: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The stand-in for the base that the recipe names, under that name."""
    folder = tmp_path_factory.mktemp("base") / "root"
    words = ("--variant=minbase", "--include=python3,python3-venv,ca-certificates", "bookworm", folder)
    try:
        done = call("debootstrap", *words, seconds=BASE_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        pytest.skip(f"debootstrap has made no base here in {BASE_SECONDS_MAX} s")
    _skip_unless_it_runs("debootstrap makes no base", done)
    (folder / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    for file in filter(os.path.isfile, FROM_THE_MACHINE):
        inside = folder / file.removeprefix("/")
        inside.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, inside)
    recipe = (root / "deploy/docker/Dockerfile").read_text(encoding="utf-8")
    (tag,) = re.findall(r"^ARG PYTHON=(\S+)$", recipe, re.MULTILINE)
    _skip_unless_it_runs("runc runs nothing", _try_runc(folder, tmp_path_factory.mktemp("bundle")))
    begun = builder.tried("from", "scratch")
    _skip_unless_it_runs("buildah begins nothing", begun)
    container = begun.stdout.strip()
    builder("copy", container, folder, "/", seconds=120)
    builder("commit", container, f"localhost/python:{tag}", seconds=120)
    tried = builder.tried("run", "--isolation", "chroot", container, "--", "python", "--version")
    _skip_unless_it_runs("buildah runs nothing", tried)
    builder("rm", container)
    shutil.rmtree(folder)
    return tag


def _try_runc(rootfs: Path, bundle: Path) -> subprocess.CompletedProcess[str]:
    """Run something that is no work of ours: a machine may lack namespaces or cgroups, which the image cannot help."""
    made = call("runc", "spec", "--bundle", bundle)
    if made.returncode:
        return made
    file = bundle / "config.json"
    spec = json.loads(file.read_text(encoding="utf-8"))
    spec["process"] |= {"terminal": False, "args": ["python", "--version"]}
    spec["root"] = {"path": str(rootfs), "readonly": True}
    file.write_text(json.dumps(spec), encoding="utf-8")
    return call("runc", "run", "--bundle", bundle, f"event-relay-tried-{os.getpid()}")


def _skip_unless_it_runs(what: str, done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        pytest.skip(f"{what} here: {(done.stdout + done.stderr)[-500:]}")


@pytest.fixture(scope="module")
def image(builder: Builder, base: str, root: Path) -> Image:
    began = time.monotonic()
    builder(
        "build", "--isolation", "chroot", "--pull=never", "--format", "docker", "--build-arg", f"PYTHON={base}",
        "--file", root / "deploy/docker/Dockerfile", "--tag", "event-relay", root, seconds=BUILD_SECONDS_MAX,
    )  # fmt: skip
    seconds = time.monotonic() - began
    config = json.loads(builder("inspect", "--type", "image", "localhost/event-relay"))["Docker"]["config"]
    container = builder("from", "--pull=never", "localhost/event-relay")
    rootfs = Path(builder("mount", container))
    for shell in ("sh", "bash", "dash"):
        (rootfs / "bin" / shell).unlink(missing_ok=True)
    return Image(config, rootfs, seconds)


@pytest.fixture(scope="module")
def run(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Start a container as a cluster would: root read-only, no capability, the image's user and words."""
    folder = tmp_path_factory.mktemp("containers")

    @contextmanager
    def start(what: str, volume: Path, environ: Mapping[str, str]) -> Iterator[Container]:
        name = f"event-relay-{what}-{os.getpid()}"
        bundle = folder / name
        bundle.mkdir()
        (bundle / "config.json").write_text(json.dumps(_bundle(image, bundle, volume, environ)), encoding="utf-8")
        log = bundle / "log"
        with log.open("wb") as out:
            words = ("runc", "run", "--bundle", str(bundle), name)
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        try:
            yield Container(name, process, log, image)
        finally:
            call("runc", "delete", "--force", name)
            process.wait(30)

    return start


def _bundle(image: Image, bundle: Path, volume: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    """runc's own specification, with what the image says."""
    assert call("runc", "spec", "--bundle", bundle).returncode == 0
    spec: dict[str, Any] = json.loads((bundle / "config.json").read_text(encoding="utf-8"))
    config = image.config
    uid, _, gid = config["User"].partition(":")
    spec["process"] |= {
        "terminal": False,
        "user": {"uid": int(uid), "gid": int(gid)},
        "args": [*config["Entrypoint"], *config["Cmd"]],
        "env": [*config["Env"], *(f"{name}={value}" for name, value in environ.items())],
        "capabilities": {},
    }
    spec["root"] = {"path": str(image.rootfs), "readonly": True}
    (target,) = config["Volumes"]
    spec["mounts"].append({"destination": target, "type": "bind", "source": str(volume), "options": ["rbind", "rw"]})
    return spec


@pytest.fixture
def volume(image: Image, tmp_path: Path) -> Path:
    """A new named volume: it takes over owner and mode of the image's folder."""
    (target,) = image.config["Volumes"]
    like = (image.rootfs / target.removeprefix("/")).stat()
    made = tmp_path / "volume"
    made.mkdir(mode=like.st_mode & 0o777)
    os.chown(made, like.st_uid, like.st_gid)
    return made


UPSTREAM = {"RELAY_UPSTREAM__URL": "http://127.0.0.1:9465/v1/log_event", "RELAY_SHUTDOWN__DRAIN_SECONDS_MAX": "1"}


def test_the_image_takes_an_event_keeps_it_over_a_stop_and_delivers_it(
    run: Callable[..., Any], image: Image, volume: Path, figure: Callable[[str], None]
) -> None:
    with run("first", volume, UPSTREAM) as first:
        first.wait("healthy", first.healthy)
        assert first.post("kept").startswith('202 {"success":true')
        assert first.status()["events"] == 1
        began = time.monotonic()
        assert first.stop() == 0, first.log
        stopped = time.monotonic() - began
    with run("second", volume, UPSTREAM) as second:
        second.wait("healthy", second.healthy)
        assert second.status()["recovered_events"] == 1
        sink = subprocess.Popen(
            ["runc", "exec", second.name, "relay", "sink"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert sink.stdout is not None
        assert json.loads(sink.stdout.readline())["eventName"] == "kept"
        second.wait("delivered", lambda: second.status()["events"] == 0)
        assert second.stop() == 0, second.log
        sink.communicate(timeout=10)
    figure(f"image: built in {image.build_seconds:.0f} s, stopped with events queued in {stopped:.1f} s")


def test_it_runs_as_nobody_writes_to_its_queue_alone_and_its_tools_work_inside(
    run: Callable[..., Any], volume: Path
) -> None:
    with run("tools", volume, UPSTREAM) as container:
        container.wait("healthy", container.healthy)
        assert container.post("looked at").startswith("202")
        assert container.call("python", "-c", "import os; print(os.getuid(), os.getgid())").stdout == "65532 65532\n"
        for folder in ("/", "/tmp", "/opt/event-relay", "/etc/event-relay"):  # noqa: S108  nothing can be written there
            tried = container.call("python", "-c", f"open('{folder}/file', 'w')")
            assert "Read-only file system" in tried.stderr or "Permission denied" in tried.stderr, folder
        assert container.call("sh", "-c", "true").returncode != 0
        for words in ("status", "queue stats", "queue peek", "queue verify", "dlq list"):
            config = () if words == "status" else ("--config", "/etc/event-relay/config.toml")
            done = container.call("relay", *words.split(), *config)
            assert done.returncode == 0, (words, done.stdout, done.stderr)
        doctor = container.call("relay", "doctor", "--config", "/etc/event-relay/config.toml")
        assert "a relay runs" in doctor.stdout
        assert "127.0.0.1:9465 cannot be reached" in doctor.stdout  # no sink yet; all else is well
        assert doctor.stdout.count("✗") == 1, doctor.stdout
        assert container.stop() == 0


def test_settings_that_cannot_be_used_end_it_with_2_and_say_why(run: Callable[..., Any], volume: Path) -> None:
    with run("wrong", volume, UPSTREAM | {"RELAY_QUEUE__BYTES_MAXX": "1GiB"}) as container:
        assert container.process.wait(30) == 2
        assert "RELAY_QUEUE__BYTES_MAXX" in container.log

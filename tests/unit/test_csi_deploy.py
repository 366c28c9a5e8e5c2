"""csi/deploy against the schemas of what it names, and against the program that it starts."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from helpers.gotools import snapshot_schemas
from wherry.image import dockerfile
from wherry_csi import config, main, requests
from wherry_csi.identity import NAME as DRIVER
from wherry_csi.pools import NODE_KEY, POOL_KEY

TOP = Path(__file__).resolve().parents[2]
DEPLOY = TOP / "csi" / "deploy"
KUBERNETES = "1.37"
Document = dict[str, Any]

#: groups whose schemas are custom resources, and where they come from
CUSTOM = {"snapshot.storage.k8s.io": snapshot_schemas, "groupsnapshot.storage.k8s.io": snapshot_schemas}
#: what the sidecars must be told, for each speaks for one node (or one leads, where upstream knows no other way)
SIDECARS = {
    "node-driver-registrar": ("--kubelet-registration-path",),
    "csi-provisioner": ("--node-deployment", "--strict-topology", "--enable-capacity", "--capacity-ownerref-level"),
    "csi-snapshotter": ("--node-deployment",),
    "csi-resizer": ("--leader-election",),
    "liveness-probe": ("--health-port",),
}
#: who talks to the API server
CLIENTS = {"csi-provisioner", "csi-snapshotter", "csi-resizer"}


def documents() -> Iterator[tuple[str, Document]]:
    """Every Kubernetes object of csi/deploy, named by file and kind."""
    for path in sorted(DEPLOY.rglob("*.yaml")):
        if path.name != "kustomization.yaml":
            for number, document in enumerate(yaml.safe_load_all(path.read_text())):
                yield f"{path.relative_to(DEPLOY)}:{number}:{document['kind']}", document
    yield "daemonset.yaml with snapshot-metadata", patched()


def of(kind: str) -> list[Document]:
    return [document for _, document in documents() if document["kind"] == kind]


def patched() -> Document:
    """The DaemonSet with the component's patch (RFC 6902; "add" at the end of a list is all that it uses)."""
    made: Document = copy.deepcopy(next(yaml.safe_load_all((DEPLOY / "daemonset.yaml").read_text())))
    for change in json.loads((DEPLOY / "snapshot-metadata" / "sidecar.json").read_text()):
        *parts, last = change["path"].strip("/").split("/")
        assert (change["op"], last) == ("add", "-")
        place = made
        for part in parts:
            place = place[part]
        place.append(change["value"])  # type: ignore[attr-defined]
    return made


def pod() -> Document:
    spec: Document = of("DaemonSet")[0]["spec"]["template"]["spec"]
    return spec


def container(name: str) -> Document:
    return next(one for one in pod()["containers"] if one["name"] == name)


def flags(name: str) -> dict[str, str]:
    """--flag=value of a container."""
    pairs = (word.partition("=") for word in container(name)["args"] if word.startswith("--"))
    return {flag: value for flag, _, value in pairs}


def toml() -> str:
    text: str = of("ConfigMap")[0]["data"]["csi.toml"]
    return text


def configured(tmp_path: Path) -> config.Config:
    """csi.toml of the ConfigMap as the driver reads it."""
    file = tmp_path / "csi.toml"
    file.write_text(toml())
    return config.make({}, str(file), {}, "node-1")


# ---- schemas


def strict(schema: Document) -> Document:
    """A structural schema that refuses what the API server would drop in silence."""
    made = {key: strict(value) if isinstance(value, dict) else value for key, value in schema.items()}
    if made.get("type") == "object" and "properties" in made and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def custom_schema(document: Document) -> Document | None:
    """The schema of a served version of a custom resource; None where nobody gives it."""
    group, _, version = document["apiVersion"].partition("/")
    if group not in CUSTOM:
        return None
    for path in CUSTOM[group]().glob("*.yaml"):
        definition = yaml.safe_load(path.read_text())
        if definition.get("spec", {}).get("group") == group and definition["spec"]["names"]["kind"] == document["kind"]:
            served = {one["name"]: one["schema"]["openAPIV3Schema"] for one in definition["spec"]["versions"]
                      if one["served"]}  # fmt: skip
            return strict(served[version])
    raise AssertionError(f"{group} has no {document['kind']}")


@pytest.mark.parametrize("document", [pytest.param(one, id=name) for name, one in documents()])
def test_each_document_fits_its_schema(document: Document) -> None:
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        if (schema := custom_schema(document)) is None:
            pytest.skip(f"the definition of {document['apiVersion']} comes with no module that can be had here")
        jsonschema.validate(document, schema)


def test_a_wrong_document_would_be_found() -> None:
    """The schemas are strict: a misspelt key and a wrong type fail, in core kinds and in custom ones."""
    driver = copy.deepcopy(of("CSIDriver")[0])
    driver["spec"]["atachRequired"] = True
    with pytest.raises(jsonschema.ValidationError):
        kubernetes_validate.validate(driver, KUBERNETES, strict=True)
    snapshot = copy.deepcopy(of("VolumeSnapshotClass")[0])
    snapshot["deletionpolicy"] = "Delete"
    schema = custom_schema(snapshot)
    assert schema
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(snapshot, schema)


def test_kustomization_names_every_file() -> None:
    for directory in (DEPLOY, DEPLOY / "snapshot-metadata"):
        told = yaml.safe_load((directory / "kustomization.yaml").read_text())
        there = {path.name for path in directory.glob("*.yaml")} - {"kustomization.yaml"}
        assert set(told["resources"]) == there
        assert all((directory / patch["path"]).is_file() for patch in told.get("patches", ()))
        target = told.get("patches", [{"target": {"name": "wherry-csi"}}])[0]["target"]
        assert target["name"] == of("DaemonSet")[0]["metadata"]["name"]


# ---- against the program


def test_all_name_this_driver() -> None:
    keys = {"StorageClass": "provisioner", "VolumeAttributesClass": "driverName", "VolumeSnapshotClass": "driver",
            "VolumeGroupSnapshotClass": "driver"}  # fmt: skip
    for kind, key in keys.items():
        assert {one[key] for one in of(kind)} == {DRIVER}, kind
    for kind in ("CSIDriver", "SnapshotMetadataService"):
        assert {one["metadata"]["name"] for one in of(kind)} == {DRIVER}, kind


def test_the_driver_knows_its_flags(tmp_path: Path) -> None:
    """argparse and csi.toml read them; what the ConfigMap says of pools is mounted into the container."""
    given = main.parser().parse_args(container("driver")["args"])
    assert (given.verb, given.endpoint, given.node_id) == ("serve", "unix:///csi/csi.sock", "$(NODE_NAME)")
    mounted = {one["mountPath"] for one in container("driver")["volumeMounts"]}
    for pool in configured(tmp_path).pools:
        assert pool.path in mounted, f"pool {pool.name}: {pool.path} is not mounted"


def test_classes_have_parameters_that_are_known(tmp_path: Path) -> None:
    pools = {pool.name for pool in configured(tmp_path).pools}
    for one in of("StorageClass"):
        wish = requests.wish(one.get("parameters", {}), {})
        assert wish.pool in {"", *pools}
        assert one["volumeBindingMode"] == "WaitForFirstConsumer", "the node of a local volume is the pod's"
    for one in of("VolumeAttributesClass"):
        assert requests.limits(one["parameters"], required=True)
    for one in [*of("VolumeSnapshotClass"), *of("VolumeGroupSnapshotClass")]:
        requests.only_known(one.get("parameters", {}), "parameters")


def test_topology_keys_are_the_drivers(tmp_path: Path) -> None:
    """NodeGetInfo gives one key for the node and one for each pool; a class may ask for no other."""
    pools = configured(tmp_path).pools
    known = {NODE_KEY, *(POOL_KEY + pool.name for pool in pools)}
    asked = [
        expression
        for one in of("StorageClass")
        for term in one.get("allowedTopologies", ())
        for expression in term["matchLabelExpressions"]
    ]
    assert asked
    assert {expression["key"] for expression in asked} <= known
    assert all(expression["values"] == ["true"] for expression in asked if expression["key"].startswith(POOL_KEY))


def test_examples_name_what_is_there() -> None:
    classes = {kind: {one["metadata"]["name"] for one in of(kind)} for kind in
               ("StorageClass", "VolumeAttributesClass", "VolumeSnapshotClass", "VolumeGroupSnapshotClass",
                "PersistentVolumeClaim", "VolumeSnapshot")}  # fmt: skip
    for claim in of("PersistentVolumeClaim"):
        spec = claim["spec"]
        assert spec["storageClassName"] in classes["StorageClass"]
        assert spec.get("volumeAttributesClassName", "wherry-slow") in classes["VolumeAttributesClass"]
        source = spec.get("dataSource", {"kind": "PersistentVolumeClaim", "name": "data"})
        assert source["name"] in classes[source["kind"]]
    for one in of("VolumeSnapshot"):
        assert one["spec"]["volumeSnapshotClassName"] in classes["VolumeSnapshotClass"]
        assert one["spec"]["source"]["persistentVolumeClaimName"] in classes["PersistentVolumeClaim"]
    for one in of("VolumeGroupSnapshot"):
        assert one["spec"]["volumeGroupSnapshotClassName"] in classes["VolumeGroupSnapshotClass"]
        label = one["spec"]["source"]["selector"]["matchLabels"]
        assert any(claim["metadata"].get("labels") == label for claim in of("PersistentVolumeClaim"))
    for one in of("Pod"):
        claims = [volume["persistentVolumeClaim"]["claimName"] for volume in one["spec"]["volumes"]]
        assert set(claims) <= classes["PersistentVolumeClaim"]


# ---- the pod


def test_all_talk_over_one_socket() -> None:
    volumes = {one["name"]: one for one in pod()["volumes"]}
    home = volumes["socket"]["hostPath"]["path"]
    assert flags("node-driver-registrar")["--kubelet-registration-path"] == f"{home}/csi.sock"
    assert home.endswith(f"/{DRIVER}")
    for name in SIDECARS:
        assert f"unix://{flags(name)['--csi-address']}" == flags("driver")["--endpoint"]
        assert {"name": "socket", "mountPath": "/csi"} in container(name)["volumeMounts"]


@pytest.mark.parametrize("name", SIDECARS)
def test_sidecars_are_told_that_volumes_are_local(name: str) -> None:
    given = flags(name)
    assert set(SIDECARS[name]) <= set(given)
    assert re.fullmatch(r"registry\.k8s\.io/sig-storage/[a-z-]+:v\d+\.\d+\.\d+", container(name)["image"])
    if name in CLIENTS:
        assert {"NODE_NAME", "NAMESPACE", "POD_NAME"} <= {one["name"] for one in container(name)["env"]}


def test_mounts_reach_the_host_and_come_from_it() -> None:
    volumes = {one["name"]: one for one in pod()["volumes"]}
    mounts = {one["name"]: one for one in container("driver")["volumeMounts"]}
    assert mounts["kubelet"]["mountPropagation"] == "Bidirectional"
    for name in ("kubelet", "pools", "pool-default", "dev", "cgroup"):
        assert volumes[name]["hostPath"]["path"] == mounts[name]["mountPath"], "one name inside and outside"
    for name in ("pools", "pool-default"):
        assert mounts[name]["mountPropagation"] == "HostToContainer"
    port = container("driver")["livenessProbe"]["httpGet"]["port"]
    assert {one["name"]: str(one["containerPort"]) for one in container("driver")["ports"]}[port] == \
        flags("liveness-probe")["--health-port"]  # fmt: skip


def test_only_the_driver_is_privileged_and_only_clients_have_a_token() -> None:
    spec = patched()["spec"]["template"]["spec"]
    assert spec["automountServiceAccountToken"] is False
    for one in spec["containers"]:
        context, mounted = one["securityContext"], {mount["name"] for mount in one["volumeMounts"]}
        assert context["readOnlyRootFilesystem"] is True
        assert one["resources"]["limits"]["memory"]
        if one["name"] == "driver":
            assert context["privileged"] is True
            assert "token" not in mounted
            continue
        assert not context.get("privileged")
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert ("token" in mounted) == (one["name"] in CLIENTS | {"csi-snapshot-metadata"})
        assert not mounted & {"kubelet", "dev", "cgroup", "pools"}


def test_rights_are_named_one_by_one() -> None:
    roles = {(one["kind"], one["metadata"]["name"]): one for kind in ("Role", "ClusterRole") for one in of(kind)}
    bound = {(one["roleRef"]["kind"], one["roleRef"]["name"]) for kind in ("RoleBinding", "ClusterRoleBinding")
             for one in of(kind)}  # fmt: skip
    assert bound == set(roles)
    for role in roles.values():
        for rule in role["rules"]:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert not {"secrets", "pods/exec", "nodes/proxy"} & set(rule["resources"])
    account = of("ServiceAccount")[0]["metadata"]["name"]
    namespace = of("Namespace")[0]["metadata"]["name"]
    subjects = [one for kind in ("RoleBinding", "ClusterRoleBinding") for binding in of(kind)
                for one in binding["subjects"]]  # fmt: skip
    assert all((one["name"], one["namespace"]) == (account, namespace) for one in subjects)
    assert pod()["serviceAccountName"] == account
    assert yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())["namespace"] == namespace


# ---- the image


def test_the_image_has_what_the_driver_imports(tmp_path: Path) -> None:
    """Its two packages alone, with what pip installs there, answer --help; the sources of COPY are in the checkout."""
    text = (DEPLOY / "Dockerfile").read_text()
    asked = set(re.findall(r"'([a-z]+>=[\d.]+)'", text))
    needed = set(tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["dependencies"])
    assert asked <= needed
    assert {name.partition(">")[0] for name in asked} == {"grpcio", "protobuf"}
    assert dockerfile.parse(text)  # by wherry's own reader
    for source, target in re.findall(r"^COPY (\S+) (\S+)$", text, re.MULTILINE):
        assert (TOP / "csi" / source).is_dir()
        os.symlink(TOP / "csi" / source, tmp_path / Path(target).name)
    block = "import sys, runpy; sys.modules.update(wherry=None, wherry_cni=None); sys.argv[1:] = ['--help']"
    code = f"{block}; runpy.run_module('wherry_csi', run_name='__main__')"
    words, env = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(words, capture_output=True, text=True, env=env, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "serve" in done.stdout

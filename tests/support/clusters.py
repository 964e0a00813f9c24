"""What the files of clusters are held against: our list of KubeRay's fields, Kubernetes' own schemas, Ray's own
readers, our own command line. Each `check_...` raises where a file is wrong."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from typing import Any

import boto3
import jsonschema
import kubernetes_validate
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start
from ray.serve.schema import ServeDeploySchema

from support.sources import ROOT
from tandem_jobs.generate import GenerateSpec
from tandem_jobs.options.spec import parse
from tandem_jobs.serve_options import AppSpec

PLAN = ROOT / "cluster" / "example_plan.json"
# The options of cluster/example.yaml as flags, the plan first
EXAMPLE = tuple(
    part
    for name, value in yaml.safe_load((ROOT / "cluster" / "example.yaml").read_text()).items()
    for part in (f"--{name.replace('_', '-')}", str(ROOT / value) if name == "plan" else value)
)
CHECKED_IN = {
    **{
        f"{name}.yaml": ROOT / "cluster" / "kuberay" / f"{name}.yaml" for name in ("raycluster", "rayjob", "rayservice")
    },
    "launcher.yaml": ROOT / "cluster" / "launcher.yaml",
}
KUBERNETES = ("1.30", "1.37")  # the oldest and the newest that must take the files
CLUSTER_FIELDS = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
Document = dict[str, Any]


def ray_document(text: str) -> Document:
    """KubeRay's document of a file; a service account comes before it, optional objects after it."""
    account, document, *_ = yaml.safe_load_all(text)
    assert account["kind"] == "ServiceAccount"
    return document


def extras_of(text: str) -> dict[str, Document]:
    """The optional objects of a file, by kind and name."""
    return {f"{extra['kind']} {extra['metadata']['name']}": extra for extra in list(yaml.safe_load_all(text))[2:]}


def cluster_of(document: Document) -> Document:
    """The cluster's spec in any of KubeRay's documents."""
    field = CLUSTER_FIELDS.get(document["kind"])
    return document["spec"][field] if field else document["spec"]


def groups_of(document: Document) -> dict[str, Document]:
    return {group["groupName"]: group for group in cluster_of(document)["workerGroupSpecs"]}


def check_kubernetes_file(text: str) -> None:
    """Check a whole file for kubectl."""
    account, document, *extras = yaml.safe_load_all(text)
    check_object(account)
    check_kuberay(document)
    for extra in extras:
        if extra["kind"] == "PodMonitor":
            jsonschema.Draft202012Validator(schema("podmonitor")).validate(extra)
        else:
            check_object(copy.deepcopy(extra))
    assert len({other["metadata"].get("namespace") for other in (account, document, *extras)}) == 1


def check_kuberay(document: Document) -> None:
    jsonschema.Draft202012Validator(kuberay_schema()).validate(document)
    for template in pod_templates(document):
        check_object({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, **copy.deepcopy(template)})
        check_pod(template)
    check_autoscaler(document)
    cluster = cluster_of(document)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        check_start_params(group["rayStartParams"])
    if document["kind"] == "RayJob":
        check_entrypoint(document["spec"]["entrypoint"])
    if document["kind"] == "RayService":
        check_serve(document["spec"]["serveConfigV2"])


@cache
def schema(name: str) -> Document:
    """A schema of `tests/data`."""
    return json.loads((ROOT / "tests" / "data" / f"{name}_schema.json").read_text())


def kuberay_schema() -> Document:
    return schema("kuberay")


def check_object(document: Document) -> None:
    """Validate by Kubernetes' own schema, without unknown fields."""
    document.setdefault("metadata", {}).setdefault("name", "a")
    for version in KUBERNETES:
        kubernetes_validate.validate(document, version, strict=True)


def pod_templates(document: Document) -> Iterator[Document]:
    cluster = cluster_of(document)
    yield cluster["headGroupSpec"]["template"]
    yield from (group["template"] for group in cluster["workerGroupSpecs"])
    if "submitterPodTemplate" in document["spec"]:
        yield document["spec"]["submitterPodTemplate"]


def check_pod(template: Document) -> None:
    """Check what no schema covers: mounts have volumes, shared memory holds the object store, no rights, no secrets."""
    spec = template["spec"]
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] > 0
    names = [volume["name"] for volume in spec.get("volumes", ())]
    assert len(names) == len(set(names))
    for container in spec["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert {mount["name"] for mount in container.get("volumeMounts", ())} == set(names)
        assert all("value" not in variable or "KEY" not in variable["name"] for variable in container.get("env", ()))
        assert ":" in container.get("image", ""), "expected an image with a tag"
    for first in spec.get("initContainers", ()):
        assert first["securityContext"]["allowPrivilegeEscalation"] is False


def check_autoscaler(document: Document) -> None:
    """As the autoscaler on the head node would read it; Ray's own reader checks labels and numbers. It is there where
    there is something to scale."""
    groups = groups_of(document).values()
    scales = any(group["minReplicas"] < group["maxReplicas"] for group in groups)
    assert cluster_of(document)["enableInTreeAutoscaling"] is scales
    assert ("autoscalerOptions" in cluster_of(document)) is scales
    cluster = {"metadata": {"name": "a", "namespace": "b"}, "spec": cluster_of(document)}
    read = _derive_autoscaling_config_from_ray_cr(cluster)
    for name, group in groups_of(document).items():
        node = read["available_node_types"][name]
        assert node["labels"] == group["labels"]
        assert node["resources"]["GPU"] == 1
        assert node["min_workers"] <= group["replicas"] <= node["max_workers"]
    assert read["available_node_types"]["headgroup"]["resources"]["CPU"] == 0


def check_start_params(params: dict[str, str]) -> None:
    """Each is a flag of the installed `ray start`, with a valid value."""
    flags = [f"--{name}={value}" for name, value in params.items()]
    start.make_context("ray start", flags)


def check_entrypoint(line: str) -> GenerateSpec:
    program, command, *words = shlex.split(line)
    assert (program, command) == ("tandem", "generate")
    return parse(GenerateSpec, words, "tandem generate")


def check_serve(text: str) -> AppSpec:
    given = yaml.safe_load(text)
    config = ServeDeploySchema.model_validate(given)
    check_read(given, config.model_dump())  # Serve passes over fields that it does not know
    (application,) = config.applications
    assert application.import_path == "tandem_jobs.serve:app"
    return AppSpec(**application.args)


def check_read(given: Any, read: Any) -> None:
    """Every field that was given has been read."""
    if isinstance(given, dict) and isinstance(read, dict):
        for name, value in given.items():
            if name not in read:
                raise ValueError(f"expected fields {', '.join(read)}, got {name}")
            check_read(value, read[name])
    elif isinstance(given, list):
        for value, other in zip(given, read, strict=True):
            check_read(value, other)


def check_launcher(text: str) -> Document:
    """By Ray's schema and EC2's, as boto3 has it; and its commands are such as `ray start` takes. Filled in."""
    with contextlib.redirect_stdout(io.StringIO()):
        config = prepare_config(yaml.safe_load(text))
        validate_config(config)
    instance = ec2().meta.service_model.operation_model("RunInstances").input_shape
    for node in config["available_node_types"].values():
        params = {**node["node_config"], "MinCount": 1, "MaxCount": 1}
        if report := ParamValidator().validate(params, instance).generate_report():
            raise ValueError(report)
    for command in (*config["head_start_ray_commands"], *config["worker_start_ray_commands"]):
        if match := re.search(r"ray start (.+)", command):
            start.make_context("ray start", shlex.split(match[1]))
    return config


@cache
def ec2() -> Any:
    return boto3.client("ec2", region_name="us-west-2")

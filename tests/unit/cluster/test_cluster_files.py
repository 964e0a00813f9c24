"""The files for real clusters that are checked in: made from the example plan, and valid for whoever reads them."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import click
import jsonschema
import kubernetes_validate
import pytest
import yaml

from support.clusters import (
    CHECKED_IN,
    EXAMPLE,
    PLAN,
    check_entrypoint,
    check_kuberay,
    check_kubernetes_file,
    check_launcher,
    check_object,
    check_serve,
    cluster_of,
    groups_of,
    kuberay_schema,
    ray_document,
)
from support.sources import ROOT
from tandem_cluster.plan_file import read_plan
from tandem_cluster.profile_file import read_profile
from tandem_jobs import cli
from tandem_jobs.cluster_render import RenderSpec, documents, read_deployment
from tandem_jobs.options.spec import parse
from tandem_jobs.plan import PlanSpec
from tandem_jobs.plan import run as run_plan

KUBERAY = [path for path in CHECKED_IN.values() if path.parent.name == "kuberay"]
OPTION = read_plan(PLAN).option("split")
AGAIN = "make it anew: make example"
REFUSALS = (  # not any exception: a check that stumbles has not looked
    jsonschema.ValidationError,
    kubernetes_validate.ValidationError,
    click.ClickException,
    AssertionError,
    ValueError,
    SystemExit,
)
Break = Callable[[dict[str, Any]], object]


def test_the_example_plan_is_what_tandem_plan_prints(capsys):
    profiles = ",".join(str(ROOT / "cluster" / f"example_{kind}.json") for kind in ("h100", "l40s"))
    argv = ["--profile", profiles, "--gpus", "h100:2,l40s:3", "--images", "1.3e6", "--draft-steps", "8"]
    run_plan(parse(PlanSpec, argv, "tandem plan"))
    assert capsys.readouterr().out == PLAN.read_text()
    assert read_plan(PLAN).best.mode == "colocated"  # so that the example needs its --mode split


@pytest.mark.parametrize("kind", ["h100", "l40s"])
def test_no_number_of_the_example_claims_to_be_measured(kind):
    profile = read_profile(str(ROOT / "cluster" / f"example_{kind}.json"))
    assert "not measured" in profile.source
    assert all(time.estimated for time in profile.stages)


def test_checked_in_files_are_the_render_of_the_example_plan():
    files = documents(read_deployment(parse(RenderSpec, [*EXAMPLE, "--out", "none"], "tandem cluster render")))
    assert set(CHECKED_IN) < set(files)
    for name, path in CHECKED_IN.items():
        assert path.read_text() == files[name], AGAIN


def test_make_example_renders_by_a_file_of_options_what_is_checked_in(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)  # the plan's path is relative
    assert cli.main(["cluster", "render", "--spec", "cluster/example.yaml", "--out", str(tmp_path)]) == 0
    for name, path in CHECKED_IN.items():
        assert (tmp_path / name).read_text() == path.read_text(), AGAIN


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_kubernetes_and_kuberay_take_them(path):
    check_kubernetes_file(path.read_text())


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_replicas_are_the_plans(path):
    groups = groups_of(ray_document(path.read_text()))
    for role, wanted in (("drafter", OPTION.drafters), ("refiner", OPTION.refiners)):
        mine = [group for group in groups.values() if group["labels"]["tandem/role"] == role]
        assert {g["labels"]["ray.io/accelerator-type"].lower(): g["maxReplicas"] for g in mine} == wanted
        assert sum(group["replicas"] for group in mine) == sum(wanted.values())
    assert len(groups) == len(OPTION.drafters) + len(OPTION.refiners)


def test_job_endpoint_and_launcher_have_the_plans_numbers():
    job = check_entrypoint(ray_document(CHECKED_IN["rayjob.yaml"].read_text())["spec"]["entrypoint"])
    app = check_serve(ray_document(CHECKED_IN["rayservice.yaml"].read_text())["spec"]["serveConfigV2"])
    numbers = (OPTION.num_drafters, OPTION.num_refiners, OPTION.draft_steps, OPTION.batch)
    for spec in (job, app):
        assert (spec.drafters, spec.refiners, spec.draft_steps, spec.batch) == numbers
        assert (spec.drafters_on, spec.refiners_on) == ("tandem/role=drafter", "tandem/role=refiner")
    assert job.images == read_plan(PLAN).images
    assert job.out == "s3://example-bucket/imagenet"
    nodes = check_launcher(CHECKED_IN["launcher.yaml"].read_text())["available_node_types"]
    gpus = {name: node["max_workers"] * node["resources"]["GPU"] for name, node in nodes.items() if name != "head"}
    groups = groups_of(ray_document(CHECKED_IN["raycluster.yaml"].read_text()))
    assert gpus == {name: group["maxReplicas"] for name, group in groups.items()}
    assert {n: node["labels"] for n, node in nodes.items() if n != "head"} == {
        name: group["labels"] for name, group in groups.items()
    }


def test_refiners_run_on_spot_nodes_and_drafters_do_not():
    for name, group in groups_of(ray_document(CHECKED_IN["raycluster.yaml"].read_text())).items():
        spec = group["template"]["spec"]
        spot = {t["key"] for t in spec["tolerations"]} - {"nvidia.com/gpu", "sku"}
        terms = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        refused = [e["key"] for term in terms for e in term["matchExpressions"] if e["operator"] == "NotIn"]
        is_spot = name.startswith("refiner")
        assert bool(spot) == is_spot
        assert bool(refused) != is_spot
        assert group["labels"]["ray.io/market-type"] == ("spot" if is_spot else "on-demand")


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_shared_memory_holds_the_object_store_and_disks_are_asked_for(path):
    cluster = cluster_of(ray_document(path.read_text()))
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        spec = group["template"]["spec"]
        sizes = {v["name"]: gib(v["emptyDir"]["sizeLimit"]) for v in spec["volumes"]}
        limits = spec["containers"][0]["resources"]["limits"]
        store = int(group["rayStartParams"]["object-store-memory"]) / 2**30
        assert store < sizes["shm"] < gib(limits["memory"])
        assert sum(size for name, size in sizes.items() if name != "shm") < gib(limits["ephemeral-storage"])
        paths = {m["mountPath"] for m in spec["containers"][0]["volumeMounts"]}
        assert group["rayStartParams"]["object-spilling-directory"] in paths


def gib(text: str) -> int:
    assert text.endswith("Gi")
    return int(text.removesuffix("Gi"))


def test_the_single_machine_config_and_the_endpoints_are_read_alike():
    check_serve((ROOT / "cluster" / "serve.yaml").read_text())


@pytest.mark.parametrize("path", [*CHECKED_IN.values(), ROOT / "cluster" / "serve.yaml"], ids=lambda path: path.stem)
def test_no_file_holds_a_secret(path):
    assert not re.search(r"AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY|secret_?key: |password", path.read_text(), re.I)


# ---- that the checks can fail


def worker(document: dict[str, Any]) -> dict[str, Any]:
    return cluster_of(document)["workerGroupSpecs"][0]


def pod(document: dict[str, Any]) -> dict[str, Any]:
    return worker(document)["template"]["spec"]


def rename(mapping: dict[str, Any], old: str, new: str) -> None:
    mapping[new] = mapping.pop(old)


WRONG: dict[str, tuple[str, Break]] = {
    "negative replicas": ("raycluster", lambda d: worker(d).update(minReplicas=-1)),
    "replicas as text": ("raycluster", lambda d: worker(d).update(maxReplicas="3")),
    "more replicas than the most": ("raycluster", lambda d: worker(d).update(replicas=9)),
    "unknown field of a group": ("raycluster", lambda d: worker(d).update(maxReplica=3)),
    "unknown field of a cluster": ("raycluster", lambda d: cluster_of(d).update(rayversion="2.60.0")),
    "no head": ("raycluster", lambda d: cluster_of(d).pop("headGroupSpec")),
    "another API": ("raycluster", lambda d: d.update(apiVersion="ray.io/v2")),
    "autoscaler of no version": (
        "raycluster",
        lambda d: cluster_of(d).update(enableInTreeAutoscaling=True, autoscalerOptions={"version": "v3"}),
    ),
    "autoscaler with nothing to scale": ("raycluster", lambda d: cluster_of(d).update(enableInTreeAutoscaling=True)),
    "password in the file": (
        "raycluster",
        lambda d: cluster_of(d).update(gcsFaultToleranceOptions={"redisPassword": "hunter2"}),
    ),
    "number among start parameters": ("raycluster", lambda d: worker(d)["rayStartParams"].update({"num-cpus": 8})),
    "unknown start parameter": ("raycluster", lambda d: worker(d)["rayStartParams"].update({"spill-dir": "/a"})),
    "start parameter of a wrong type": (
        "raycluster",
        lambda d: worker(d)["rayStartParams"].update({"object-store-memory": "8Gi"}),
    ),
    "label with a space": ("raycluster", lambda d: worker(d)["labels"].update({"tandem/role": "a drafter"})),
    "unknown field of a pod": ("raycluster", lambda d: pod(d).update(toleration=[])),
    "wrong type in a pod": ("raycluster", lambda d: pod(d).update(terminationGracePeriodSeconds="60")),
    "misspelt probe": ("raycluster", lambda d: rename(pod(d)["containers"][0], "livenessProbe", "livenesProbe")),
    "no image": ("raycluster", lambda d: pod(d)["containers"][0].pop("image")),
    "mount without a volume": ("raycluster", lambda d: pod(d)["volumes"].pop()),
    "root": ("raycluster", lambda d: pod(d)["securityContext"].update(runAsUser=0)),
    "two GPUs": (
        "raycluster",
        lambda d: pod(d)["containers"][0]["resources"]["limits"].update({"nvidia.com/gpu": "2"}),
    ),
    "unknown option of the job": (
        "rayjob",
        lambda d: d["spec"].update(entrypoint=d["spec"]["entrypoint"] + " --gpus 3"),
    ),
    "one selector alone": (
        "rayjob",
        lambda d: d["spec"].update(entrypoint=d["spec"]["entrypoint"].replace("--refiners-on tandem/role=refiner", "")),
    ),
    "time to live without an end": ("rayjob", lambda d: d["spec"].update(shutdownAfterJobFinishes=False)),
    "deadline of nothing": ("rayjob", lambda d: d["spec"].update(activeDeadlineSeconds=0)),
    "submission of no kind": ("rayjob", lambda d: d["spec"].update(submissionMode="HttpMode")),
    "unknown field of the submitter": (
        "rayjob",
        lambda d: d["spec"]["submitterPodTemplate"]["spec"]["containers"][0].update(images="a:b"),
    ),
    "unknown option of the endpoint": (
        "rayservice",
        lambda d: edit_serve(d, lambda c: app_args(c).update(drafter_n=2)),
    ),
    "endpoint with no drafters": ("rayservice", lambda d: edit_serve(d, lambda c: app_args(c).update(drafters=0))),
    "unknown field of Serve": ("rayservice", lambda d: edit_serve(d, lambda c: c.update(http_option={}))),
    "port of Serve as text": ("rayservice", lambda d: edit_serve(d, lambda c: c["http_options"].update(port="web"))),
}


def edit_serve(document: dict[str, Any], change: Break) -> None:
    config = yaml.safe_load(document["spec"]["serveConfigV2"])
    change(config)
    document["spec"]["serveConfigV2"] = yaml.safe_dump(config)


def app_args(config: dict[str, Any]) -> dict[str, Any]:
    return config["applications"][0]["args"]


@pytest.mark.parametrize("what", WRONG)
def test_a_broken_document_is_refused(what, capsys):
    name, change = WRONG[what]
    document = ray_document(CHECKED_IN[f"{name}.yaml"].read_text())
    check_kuberay(copy.deepcopy(document))
    change(document)
    with pytest.raises(REFUSALS):
        check_kuberay(document)


def test_every_level_of_the_schema_of_kuberay_refuses_unknown_fields():
    def closed(schema: Any) -> Iterator[bool]:
        if isinstance(schema, dict):
            if "properties" in schema and schema.get("type") == "object":
                yield schema.get("additionalProperties") is False
            for part in schema.values():
                yield from closed(part)

    found = list(closed(kuberay_schema()["$defs"]))
    assert len(found) >= 12 and all(found)
    jsonschema.Draft202012Validator.check_schema(kuberay_schema())


def test_kubernetes_refuses_a_service_account_with_a_misspelt_field():
    with pytest.raises(kubernetes_validate.ValidationError, match="automountToken"):
        check_object({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "a"}, "automountToken": False})


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(max_worker=3),
        lambda c: c.update(head_node_type="none"),
        lambda c: c.update(max_workers=1),
        lambda c: c["available_node_types"]["drafter-h100"].update(min_workers="2"),
        lambda c: c["available_node_types"]["drafter-h100"]["resources"].update(GPU=-1),
        lambda c: c["available_node_types"]["drafter-h100"]["node_config"].update(InstanceTypo="p5.4xlarge"),
        lambda c: c["available_node_types"]["drafter-h100"]["node_config"].update(InstanceMarketOptions="spot"),
        lambda c: c["worker_start_ray_commands"].append("ray start --adress=$RAY_HEAD_IP:6379"),
        lambda c: c["docker"].update(images="a:b"),
    ],
)
def test_a_broken_launcher_file_is_refused(change, capsys):
    config = yaml.safe_load(CHECKED_IN["launcher.yaml"].read_text())
    change(config)
    with pytest.raises(REFUSALS):
        check_launcher(yaml.safe_dump(config))

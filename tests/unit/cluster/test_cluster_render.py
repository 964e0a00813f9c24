"""The render command gives valid files for every kind of plan."""

from __future__ import annotations

import json

import pytest

from support.clusters import EXAMPLE, PLAN, check_entrypoint, check_launcher, check_serve, groups_of, ray_document
from support.rendering import AMI, DATASET, check, option, plan_file, render
from tandem.assembly import Preparation
from tandem_cluster.launcher import AMI_PARAMETER
from tandem_cluster.session import Session
from tandem_jobs.cli import main
from tandem_jobs.serve_placement import choose_placement, replica_ranges

ALL = {"raycluster.yaml", "rayjob.yaml", "rayservice.yaml", "serve.yaml", "launcher.yaml"}


MODELS = EXAMPLE[8:14]


EMPTY = Session(num_nodes=1, num_cpus=0, num_gpus=0, simulated=False, address="none")


def test_how_models_compute_is_said_to_the_job_and_to_the_endpoint(tmp_path):
    flags = ("--fold-adaln", "--fp8", "--cuda-graphs")
    plan = plan_file(tmp_path, option("split", {"l40s": 1}))
    for given in (flags, flags[:1], (), ("--no-cuda-graphs",)):
        files = render(plan, tmp_path / f"out-{len(given)}-{given[-1:]}", *DATASET, *given)
        check(files)
        job = check_entrypoint(ray_document(files["rayjob.yaml"])["spec"]["entrypoint"])
        for spec in (job, check_serve(files["serve.yaml"])):
            assert Preparation.of(spec, False).names == [flag[2:].replace("-", "_") for flag in given if flag in flags]
            assert spec.cuda_graphs is {"--cuda-graphs": True, "--no-cuda-graphs": False}.get("".join(given[-1:]))


def test_int8_is_refused_as_the_nodes_have_gpus(tmp_path, capsys):
    plan = plan_file(tmp_path, option("split", {"l40s": 1}))
    assert main(["cluster", "render", "--plan", str(plan), "--out", str(tmp_path / "out"), "--int8"]) == 2
    assert capsys.readouterr().err.startswith("error: --int8: expected none, as the nodes of a plan have GPUs")
    assert not (tmp_path / "out").exists()


def test_class_names_reach_the_job_and_the_endpoint(tmp_path):
    plan = plan_file(tmp_path, option("split", {"l40s": 1}))
    classes = 'golden retriever,"dark glasses, shades"'
    files = render(plan, tmp_path / "out", *DATASET, "--classes", classes, "--class-names", "s3://bucket/names.txt")
    check(files)
    job = check_entrypoint(ray_document(files["rayjob.yaml"])["spec"]["entrypoint"])
    assert (job.classes, job.class_names) == (classes, "s3://bucket/names.txt")
    assert check_serve(files["serve.yaml"]).class_names == "s3://bucket/names.txt"


@pytest.mark.parametrize(
    ("best", "more", "missing"),
    [
        (option("split", {"h100": 2, "l20": 1}, {"l20": 5}), ("--instances", "l20=g9.large"), set()),
        (option("split", {"a100": 9}, {"t4": 2, "l4": 3}), ("--spot", "all", "--autoscale"), set()),
        (option("split", {"l20": 2}, {"l20": 1}), (), {"launcher.yaml"}),
        (option("split", {"gpu": 1}, {"rtx-4090.24": 1}), ("--spot", "none"), {"launcher.yaml"}),
        (option("colocated", {"l40s": 1}), (), set()),
        (option("colocated", {"l40s": 2, "t4": 1}), ("--spot", "all", "--autoscale"), set()),
        (
            option("mixed", {"l40s": 1}, {"t4": 2}) | {"both": {"l40s": 2}},
            ("--spot", "all"),
            {"rayservice.yaml", "serve.yaml"},
        ),
    ],
)
def test_every_kind_of_plan_gives_valid_files(best, more, missing, tmp_path, capsys):
    files = render(plan_file(tmp_path, best), tmp_path / "out", *DATASET, *AMI, *more)
    assert set(files) == ALL - missing
    check(files)
    out, err = capsys.readouterr()
    assert out.split() == [str(tmp_path / "out" / name) for name in out_order(files)]
    assert all(name in err for name in missing)
    job = check_entrypoint(ray_document(files["rayjob.yaml"])["spec"]["entrypoint"])
    assert (job.placement, job.images, job.draft_steps, job.batch) == (best["mode"], 1001, 5, 16)
    assert (job.drafters, job.refiners) == (sum(best["drafters"].values()), sum(best["refiners"].values()))
    if "serve.yaml" in files:
        app = check_serve(files["serve.yaml"])
        assert (app.placement, app.drafters, app.refiners) == (job.placement, job.drafters, job.refiners)
    assert (job.colocated or 0) == sum(best.get("both", {}).values())
    roles = ("drafters",) if best["mode"] == "colocated" else ("drafters", "refiners", *(["both"] * ("both" in best)))
    groups = groups_of(ray_document(files["raycluster.yaml"]))
    assert sum(g["maxReplicas"] for g in groups.values()) == sum(sum(best[role].values()) for role in roles)
    assert len({json.dumps(g["labels"], sort_keys=True) for g in groups.values()}) == len(groups)


def out_order(files: dict[str, str]) -> list[str]:
    order = ["raycluster.yaml", "rayjob.yaml", "rayservice.yaml", "serve.yaml", "launcher.yaml"]
    return [name for name in order if name in files]


def test_instances_with_several_gpus_are_as_many_as_it_takes(tmp_path):
    best = option("split", {"a100": 9}, {"l20": 5})
    files = render(plan_file(tmp_path, best), tmp_path / "out", "--instances", "l20=x9.large:4", "--spot", "none", *AMI)
    nodes = check_launcher(files["launcher.yaml"])["available_node_types"]
    assert {name: (node["max_workers"], node["resources"].get("GPU")) for name, node in nodes.items()} == {
        "head": (0, None),
        "drafter-a100": (2, 8),
        "refiner-l20": (2, 4),
    }
    assert not any("InstanceMarketOptions" in node["node_config"] for node in nodes.values())


def test_every_node_of_ec2_starts_from_the_ami_that_was_given(tmp_path, capsys):
    """Ray's own default is years older than the driver that torch needs."""
    images = {}
    for ami in (AMI[1], "ami-" + "0" * 17, "ami-" + "a" * 8):
        files = render(PLAN, tmp_path / ami[-3:], *EXAMPLE[2:], "--ami", ami)
        nodes = check_launcher(files["launcher.yaml"])["available_node_types"]
        images[ami] = {node["node_config"]["ImageId"] for node in nodes.values()}
    assert images == {ami: {ami} for ami in images}
    assert nodes["head"]["node_config"]["IamInstanceProfile"] == {"Name": "tandem-head"}
    assert "launcher.yaml" not in render(PLAN, tmp_path / "none", "--mode", "split", *MODELS)
    line = "left out: launcher.yaml, which needs --ami: AMIs differ by region, and Ray's own is too old; "
    assert f"{line}AWS names a current one: resolve:ssm:{AMI_PARAMETER}" in capsys.readouterr().err.splitlines()
    render(PLAN, tmp_path / "head", "--mode", "split", *MODELS, *AMI, "--instance-profile", "tandem")
    assert "may not start workers with a profile; see --head-instance-profile" in capsys.readouterr().err


def test_a_service_that_follows_the_load_starts_with_one_of_each(tmp_path):
    best = option("split", {"h100": 2, "l4": 2}, {"l40s": 3})
    files = render(plan_file(tmp_path, best), tmp_path / "out", "--autoscale")
    bounds = {
        name: (group["minReplicas"], group["maxReplicas"])
        for name, group in groups_of(ray_document(files["rayservice.yaml"])).items()
    }
    assert bounds == {"drafter-h100": (1, 2), "drafter-l4": (0, 2), "refiner-l40s": (1, 3)}
    assert check_serve(files["serve.yaml"]).autoscale


def test_spot_nodes_are_given_back_on_request_by_clusters_that_stay_alone(tmp_path):
    files = render(PLAN, tmp_path / "out", *EXAMPLE[2:], "--release-refiners")
    for name, least in (("raycluster.yaml", 0), ("rayjob.yaml", 3)):
        groups = groups_of(ray_document(files[name]))
        assert (groups["refiner-l40s"]["minReplicas"], groups["drafter-h100"]["minReplicas"]) == (least, 2)
    nodes = check_launcher(files["launcher.yaml"])["available_node_types"]
    assert (nodes["refiner-l40s"]["min_workers"], nodes["drafter-h100"]["min_workers"]) == (0, 2)


def test_colocated_is_never_turned_into_a_split_unasked(tmp_path):
    plan = plan_file(tmp_path, option("colocated", {"l4": 3}), option("split", {"l4": 2}, {"l4": 1}))
    assert set(groups_of(ray_document(render(plan, tmp_path / "a")["raycluster.yaml"]))) == {"both-l4"}
    split = render(plan, tmp_path / "b", "--mode", "split")
    assert set(groups_of(ray_document(split["raycluster.yaml"]))) == {"drafter-l4", "refiner-l4"}


def test_the_endpoint_of_a_colocated_plan_has_both_models_on_every_gpu(tmp_path):
    """When the app is built no node with a GPU needs to be there: labels say where its replicas go."""
    plan = plan_file(tmp_path, option("colocated", {"l4": 3}))
    for more, least in (((), 3), (("--autoscale",), 1)):
        files = render(plan, tmp_path / f"out{least}", *more)
        spec = check_serve(files["serve.yaml"])
        assert (spec.placement, spec.drafters, spec.refiners) == ("colocated", 3, 3)
        assert (spec.drafters_on, spec.refiners_on) == ("tandem/role=both",) * 2
        group = groups_of(ray_document(files["rayservice.yaml"]))["both-l4"]
        assert (group["minReplicas"], group["maxReplicas"], group["labels"]["tandem/role"]) == (least, 3, "both")
        replicas, none = replica_ranges(spec, choose_placement(spec, EMPTY, 5))
        assert none is None and (replicas.least, replicas.most) == (least, 3)

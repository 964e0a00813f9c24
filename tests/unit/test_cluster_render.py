"""`tandem cluster render`: every kind of plan gives valid files, and what is wrong leaves none."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from clusters import (
    EXAMPLE,
    PLAN,
    check_entrypoint,
    check_kubernetes_file,
    check_launcher,
    check_serve,
    groups_of,
    ray_document,
)

from cluster.launcher import AMI_PARAMETER
from cluster.session import Session
from jobs import cli
from jobs.serve_placement import choose_placement, scales
from tandem.assembly import Preparation

ALL = {"raycluster.yaml", "rayjob.yaml", "rayservice.yaml", "serve.yaml", "launcher.yaml"}
DATASET = ("--dataset", "s3://bucket/out")
AMI = ("--ami", f"resolve:ssm:{AMI_PARAMETER}")
MODELS = EXAMPLE[8:14]
EMPTY = Session(num_nodes=1, num_cpus=0, num_gpus=0, simulated=False, address="none")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("TANDEM_")]:
        monkeypatch.delenv(name)


def option(mode: str, drafters: dict[str, int], refiners: dict[str, int] | None = None) -> dict[str, Any]:
    counts = {"drafters": drafters, "refiners": refiners or drafters}
    return {"mode": mode, "draft_steps": 5, "batch": 16, **counts, "images_per_s": 10.0, "hours": 1.0}


def plan_file(folder: Path, best: dict[str, Any], *others: dict[str, Any], images: float = 1000.5) -> Path:
    path = folder / "plan.json"
    path.write_text(json.dumps({"request": {"images": images}, "best": best, "runners_up": list(others)}) + "\n")
    return path


def render(plan: Path, out: Path, *more: str) -> dict[str, str]:
    """The files that the command has written."""
    assert cli.main(["cluster", "render", "--plan", str(plan), "--out", str(out), *more]) == 0
    return {path.name: path.read_text() for path in out.iterdir()}


def check(files: dict[str, str]) -> None:
    for name, text in files.items():
        if name.startswith("ray"):
            check_kubernetes_file(text)
    if "serve.yaml" in files:
        check_serve(files["serve.yaml"])
    if "launcher.yaml" in files:
        check_launcher(files["launcher.yaml"])


def test_how_models_compute_is_said_to_the_job_and_to_the_endpoint(tmp_path):
    how = ("--fold-adaln", "--int8", "--compile", "--cuda-graphs")
    plan = plan_file(tmp_path, option("split", {"l40s": 1}))
    for given in (how, how[:1], ()):
        files = render(plan, tmp_path / f"out{len(given)}", *DATASET, *given)
        check(files)
        job = check_entrypoint(ray_document(files["rayjob.yaml"])["spec"]["entrypoint"])
        for spec in (job, check_serve(files["serve.yaml"])):
            assert Preparation.of(spec).names == [flag[2:].replace("-", "_") for flag in given]


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
        replicas, none = scales(spec, choose_placement(spec, EMPTY, 5))
        assert none is None and (replicas.least, replicas.most) == (least, 3)


def broken(change: Any) -> str:
    plan = json.loads(PLAN.read_text())
    change(plan)
    return json.dumps(plan)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "the whole: Invalid JSON"),
        ("[1]", "the whole: expected an object, got [1]"),
        (broken(lambda p: p.pop("best")), "best: expected a value, got none"),
        (broken(lambda p: p.pop("request")), "request: expected a value, got none"),
        (broken(lambda p: p["best"].update(mode="x")), "best.mode: expected 'split', 'colocated' or 'mixed', got 'x'"),
        (broken(lambda p: p["best"].update(batch="64")), "best.batch: expected a valid integer, got '64'"),
        (broken(lambda p: p["best"].update(batch=0)), "best.batch: expected greater than 0, got 0"),
        (broken(lambda p: p["best"].update(drafters={})), "best.drafters: "),
        (broken(lambda p: p["best"].update(drafters={"l4": -1})), "best.drafters.l4: expected greater than 0, got -1"),
        (broken(lambda p: p["best"].update(refiners={"H 100": 1})), "best.refiners.H 100.[key]: "),
        (broken(lambda p: p["request"].update(images=0)), "request.images: expected greater than 0, got 0"),
        (broken(lambda p: p["runners_up"][0].pop("mode")), "runners_up.0.mode: expected a value, got none"),
    ],
)
def test_what_is_no_plan_is_one_line_and_leaves_nothing(text, line, tmp_path, capsys):
    path = tmp_path / "plan.json"
    path.write_text(text)
    assert cli.main(["cluster", "render", "--plan", str(path), "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    first, hint = err.splitlines()
    assert first.startswith(f"error: --plan: {path}: {line}")
    assert hint.startswith("hint: made by: tandem plan")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (("--plan", "none.json"), "--plan: cannot read none.json"),
        (("--mode", "colocated"), "--mode: expected a plan with a colocated option, got split alone"),
        (("--dataset", "folder"), "--dataset: expected s3://bucket/prefix, got 'folder'"),
        (("--name", "Tandem"), "--name: expected at most 30 small letters"),
        (("--image", "a b"), "--image: expected text without spaces"),
        (("--instances", "l4"), "--instances: expected KIND=TYPE or KIND=TYPE:GPUS, each kind once, got 'l4'"),
        (("--instances", "l4=a.b,l4=c.d"), "--instances: expected KIND=TYPE"),
        (("--instances", "L4=a.b,L4=c.d"), "--instances: expected KIND=TYPE or KIND=TYPE:GPUS, each kind once"),
        (("--instances", "l4=a.b,L4=c.d"), "--instances: expected KIND=TYPE or KIND=TYPE:GPUS, each kind once"),
        (("--cpus", "0"), "--cpus: expected a whole number above 0"),
        *(
            (("--ami", ami), "--ami: expected ami- and 8 or 17 hexadecimal digits, or resolve:ssm:/PARAMETER")
            for ami in ("latest_dlami", "ami-123", "resolve:ssm:name", "ami-" + "G" * 17)
        ),
        (("--spot", "some"), "--spot: expected 'refiners', 'all' or 'none'"),
    ],
)
def test_wrong_options_are_one_line_and_leave_nothing(more, line, tmp_path, capsys):
    plan = plan_file(tmp_path, option("split", {"l4": 1}, {"l4": 1}))
    assert cli.main(["cluster", "render", "--plan", str(plan), "--out", str(tmp_path / "out"), *more]) == 2
    assert capsys.readouterr().err.startswith(f"error: {line}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["dataset", "drafter", "refiner", "vqvae", "image", "region"])
@pytest.mark.parametrize(
    "address",
    [
        "s3://user:hunter2@bucket/x",
        "s3://hunter2@bucket/x",
        "s3://user:hun/ter2@bucket/x",
        "https://user:hunter2@host:443/x",
        "user:hunter2@registry.example.com/tandem:1",
    ],
)
def test_addresses_with_passwords_are_refused_and_not_repeated(name, address, tmp_path, capsys, monkeypatch):
    (tmp_path / "options.yaml").write_text(f"{name}: {address}\n")
    argv = ["cluster", "render", "--plan", str(PLAN), "--mode", "split", "--out", str(tmp_path / "out")]
    assert cli.main([*argv, f"--{name}", address]) == 2
    assert cli.main([*argv, "--spec", str(tmp_path / "options.yaml")]) == 2
    monkeypatch.setenv(f"TANDEM_{name.upper()}", address)
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    line = f"error: --{name}: expected an address without user or password, which would stand in the files"
    assert [text for text in err.splitlines() if not text.startswith("hint:")] == [line] * 3
    assert "ter2" not in out + err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("image", f"registry.example.com:5000/tandem:1@sha256:{'0a' * 32}"),
        ("image", f"tandem:1@sha256:{'0a' * 32}"),
        ("image", "127.0.0.1:5000/tandem:1"),
        ("dataset", "s3://bucket/who@where:now"),
        ("drafter", "/weights/var@d30.pth"),
    ],
)
def test_addresses_with_digests_ports_and_signs_in_paths_are_taken(name, address, tmp_path):
    argv = [*EXAMPLE[2:], f"--{name}", address]
    files = render(PLAN, tmp_path / "out", *argv)
    assert address in files["rayjob.yaml"]
    check(files)


def test_n_is_held_against_the_embedded_model(tmp_path, capsys):
    argv = ["cluster", "render", "--plan", str(PLAN), "--out", str(tmp_path / "out")]
    assert cli.main(argv) == 2
    first, hint = capsys.readouterr().err.splitlines()
    assert first == "error: --plan: draft_steps: expected 1 to 6 (the pyramid has 7 scales), got 8"
    assert hint.startswith("hint: --drafter, --refiner and --vqvae name the models")
    assert not (tmp_path / "out").exists()


def test_other_files_are_replaced_on_request_alone(tmp_path, capsys):
    out = tmp_path / "out"
    first = render(PLAN, out, *EXAMPLE[2:])
    assert render(PLAN, out, *EXAMPLE[2:]) == first  # the same again is no replacement
    capsys.readouterr()
    assert cli.main(["cluster", "render", *EXAMPLE, "--out", str(out), "--cpus", "4"]) == 2
    err = capsys.readouterr().err
    assert f"expected none or the same files in {out}, got other raycluster.yaml, rayjob.yaml" in err
    assert {path.name: path.read_text() for path in out.iterdir()} == first
    assert render(PLAN, out, *EXAMPLE[2:], "--cpus", "4", "--overwrite") != first


def test_a_place_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["cluster", "render", *EXAMPLE, "--out", str(tmp_path / "file" / "out")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: --out: cannot write")

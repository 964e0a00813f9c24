"""`tandem cluster render` on clusters with rules of their own: queues, namespaces, registries, quotas, Redis, monitors.
KubeRay's fields are those of its CRDs 1.5.1 to 1.7.0."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.clusters import (
    EXAMPLE,
    PLAN,
    check_entrypoint,
    check_kubernetes_file,
    check_launcher,
    cluster_of,
    extras_of,
    groups_of,
    pod_templates,
    ray_document,
)
from tandem_jobs import cli

KUBERAY = ("raycluster.yaml", "rayjob.yaml", "rayservice.yaml")
QUEUE = "kueue.x-k8s.io/queue-name"
EVERYTHING = (
    *("--namespace", "images", "--object-labels", f"{QUEUE}=gpus,team=vision", "--image-pull-secrets", "one,two"),
    *("--priority-class", "batch-low", "--env", "NCCL_DEBUG=INFO,PLACE=a b", "--env-from-secret", "hub,store"),
    *("--suspend", "--deadline", "90m", "--gcs-redis", "redis:6379", "--gcs-redis-secret", "redis-password"),
    *("--pod-monitor", "--disruption-budgets", "--ingress-host", "tandem.example.com", "--ingress-class", "nginx"),
    *("--ingress-tls-secret", "tandem-tls"),
)


def render(out: Path, *more: str, plan: Path = PLAN) -> dict[str, str]:
    assert cli.main(["cluster", "render", *EXAMPLE, "--plan", str(plan), "--out", str(out), *more]) == 0
    return {path.name: path.read_text() for path in out.iterdir()}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return render(tmp_path_factory.mktemp("everything") / "out", *EVERYTHING)


@pytest.mark.parametrize("name", KUBERAY)
def test_every_option_at_once_gives_valid_files(name, files):
    check_kubernetes_file(files[name])


@pytest.mark.parametrize("name", KUBERAY)
def test_pods_have_what_their_cluster_asks_for(name, files):
    for template in pod_templates(ray_document(files[name])):
        spec = template["spec"]
        assert spec["imagePullSecrets"] == [{"name": "one"}, {"name": "two"}]
        assert spec["priorityClassName"] == "batch-low"
        (container,) = spec["containers"]
        if container["name"] == "ray-job-submitter":
            continue
        values = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert (values["NCCL_DEBUG"], values["PLACE"]) == ("INFO", "a b")
        assert [source["secretRef"]["name"] for source in container["envFrom"]] == ["tandem-s3", "hub", "store"]
        assert template["metadata"]["labels"]["team"] == "vision"
        assert QUEUE not in template["metadata"]["labels"], "Kueue admits the cluster, not its pods one by one"


@pytest.mark.parametrize("name", KUBERAY)
def test_objects_are_in_the_namespace_with_their_labels_and_so_are_the_commands(name, files):
    account, document, *extras = yaml.safe_load_all(files[name])
    for thing in (account, document, *extras):
        assert thing["metadata"]["namespace"] == "images"
        assert thing["metadata"]["labels"]["team"] == "vision"
        assert (QUEUE in thing["metadata"]["labels"]) == (thing is document)
    commands = re.findall(r"^#.*?(kubectl .+)$", files[name], re.M)
    assert commands and all(" -n images " in c for c in commands if not re.search(r"(apply|delete) -f", c))


def test_kueue_gets_no_autoscaler_where_nothing_scales(files):
    """It refuses enableInTreeAutoscaling; and only an autoscaler needs Kubernetes' API."""
    for name in KUBERAY:
        cluster = cluster_of(ray_document(files[name]))
        assert cluster["enableInTreeAutoscaling"] is False and "autoscalerOptions" not in cluster
        assert cluster["headGroupSpec"]["template"]["spec"]["automountServiceAccountToken"] is False


def test_jobs_are_suspended_and_end_at_their_deadline(files):
    job, cluster = (ray_document(files[f"{name}.yaml"])["spec"] for name in ("rayjob", "raycluster"))
    assert (job["suspend"], job["shutdownAfterJobFinishes"], job["activeDeadlineSeconds"]) == (True, True, 5400)
    assert cluster["suspend"] is True
    assert "suspend" not in ray_document(files["rayservice.yaml"])["spec"]  # of KubeRay 1.7 alone
    assert "suspend" not in job["rayClusterSpec"]


def test_what_outlives_its_head_keeps_its_state_in_redis(files):
    password = {"valueFrom": {"secretKeyRef": {"name": "redis-password", "key": "password"}}}
    for name in ("raycluster.yaml", "rayservice.yaml"):
        cluster = cluster_of(ray_document(files[name]))
        assert cluster["gcsFaultToleranceOptions"] == {"redisAddress": "redis:6379", "redisPassword": password}
        assert "kubectl -n images create secret generic redis-password --from-literal=password=..." in files[name]
    assert "gcsFaultToleranceOptions" not in cluster_of(ray_document(files["rayjob.yaml"])), "its driver dies with it"


def test_monitors_budgets_and_ingress_find_their_pods(files):
    names = {"raycluster.yaml": "tandem", "rayjob.yaml": "tandem-job", "rayservice.yaml": "tandem-endpoint"}
    for file, name in names.items():
        extras = extras_of(files[file])
        monitor, head = extras[f"PodMonitor {name}"], extras[f"PodDisruptionBudget {name}-headgroup"]
        labels = {"app.kubernetes.io/instance": name}
        assert monitor["spec"]["selector"] == {"matchLabels": labels}
        assert head["spec"]["selector"] == {"matchLabels": labels | {"ray.io/group": "headgroup"}}
        cluster = cluster_of(ray_document(files[file]))
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            assert labels.items() <= group["template"]["metadata"]["labels"].items()
            ports = {port["name"] for port in group["template"]["spec"]["containers"][0]["ports"]}
            assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} <= ports
    extras = extras_of(files["rayservice.yaml"])
    least = {name: extra["spec"]["minAvailable"] for name, extra in extras.items() if "Budget" in name}
    assert list(least.values()) == [1, 1, 2]  # the head; of two drafters and of three refiners all but one
    ingress = extras["Ingress tandem-endpoint"]["spec"]
    assert ingress["tls"] == [{"hosts": ["tandem.example.com"], "secretName": "tandem-tls"}]
    (path,) = ingress["rules"][0]["http"]["paths"]
    assert path["backend"]["service"] == {"name": "tandem-endpoint-serve-svc", "port": {"number": 8000}}
    assert not any("Ingress" in name for name in extras_of(files["rayjob.yaml"]))


def test_containers_on_ec2_get_the_variables_too(files):
    options = check_launcher(files["launcher.yaml"])["docker"]["run_options"]
    assert "--env NCCL_DEBUG=INFO" in options and "--env 'PLACE=a b'" in options


@pytest.mark.parametrize(
    ("more", "bounds", "words"),
    [
        (
            ("--max-drafters", "8"),
            {"h100": (1, 8), "l40s": (3, 3)},
            {"min_drafters": 1, "max_drafters": 8, "refiners": 3},
        ),
        (
            ("--min-drafters", "2", "--max-drafters", "4", "--min-refiners", "1"),
            {"h100": (2, 4), "l40s": (1, 3)},
            {"min_drafters": 2, "max_drafters": 4, "min_refiners": 1, "max_refiners": 3},
        ),
    ],
)
def test_an_elastic_job_has_a_cluster_that_scales_as_far(more, bounds, words, tmp_path):
    files = render(tmp_path / "out", *more)
    for name in ("raycluster.yaml", "rayjob.yaml"):
        check_kubernetes_file(files[name])
        groups = groups_of(ray_document(files[name]))
        found = {name.partition("-")[2]: (group["minReplicas"], group["maxReplicas"]) for name, group in groups.items()}
        assert found == bounds
        assert cluster_of(ray_document(files[name]))["enableInTreeAutoscaling"] is True
    job = check_entrypoint(ray_document(files["rayjob.yaml"])["spec"]["entrypoint"])
    assert {name: getattr(job, name) for name in words} == words and job.is_elastic
    nodes = check_launcher(files["launcher.yaml"])["available_node_types"]
    assert {
        name.partition("-")[2]: (n["min_workers"], n["max_workers"]) for name, n in nodes.items() if name != "head"
    } == bounds
    assert not cluster_of(ray_document(files["rayservice.yaml"]))["enableInTreeAutoscaling"]


def test_of_several_kinds_in_an_elastic_role_the_first_stay(tmp_path):
    best: dict[str, Any] = {"mode": "split", "draft_steps": 8, "batch": 16, "images_per_s": 10.0}
    best |= {"drafters": {"h100": 2, "l40s": 3}, "refiners": {"l4": 1}}
    (tmp_path / "plan.json").write_text(json.dumps({"request": {"images": 10}, "best": best}))
    files = render(tmp_path / "out", "--min-drafters", "3", plan=tmp_path / "plan.json")
    groups = groups_of(ray_document(files["rayjob.yaml"]))
    assert {name: (g["minReplicas"], g["maxReplicas"]) for name, g in groups.items()} == {
        "drafter-h100": (2, 2),
        "drafter-l40s": (1, 3),
        "refiner-l4": (1, 1),
    }


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (("--namespace", "a_b"), "--namespace: expected small letters, digits and hyphens"),
        (("--priority-class", "A"), "--priority-class: expected small letters, digits, hyphens and dots"),
        (("--ingress-host", "a/b"), "--ingress-host: expected small letters, digits, hyphens and dots"),
        (("--image-pull-secrets", "a,b_c"), "--image-pull-secrets: expected small letters, digits, hyphens and dots"),
        (("--object-labels", "a b=c"), "--object-labels: expected NAME=VALUE of a Kubernetes label"),
        (("--object-labels", "a=b,a=c"), "--object-labels: expected each name once"),
        (("--object-labels", "ray.io/group=c"), "--object-labels: expected labels other than"),
        (("--env", "A"), "--env: expected NAME=VALUE"),
        (("--env", "TANDEM_CACHE=/x"), "--env: expected variables that neither these files nor KubeRay set"),
        (("--deadline", "soon"), "--deadline: expected a time such as 90m, 24h or 2d, got 'soon'"),
        (("--gcs-redis", "redis"), "--gcs-redis: expected HOST:PORT, redis://HOST:PORT or rediss://HOST:PORT"),
        (("--gcs-redis-secret", "a"), "expected --gcs-redis with --gcs-redis-secret, got none"),
        (("--ingress-class", "nginx"), "expected --ingress-host with --ingress-class and --ingress-tls-secret"),
        (("--min-drafters", "3"), "--min-drafters, --max-drafters: expected a least of at most 2, got 3"),
        (("--mode", "colocated", "--max-drafters", "3"), "--min-drafters, --max-drafters: expected a split, got col"),
        *(
            (
                ("--object-labels", f"{QUEUE}=gpus", *scaling),
                f"expected no --autoscale, --release-refiners, --min- and --max- options with the label {QUEUE}: ",
            )
            for scaling in (("--autoscale",), ("--release-refiners",), ("--max-refiners", "9"))
        ),
    ],
)
def test_wrong_options_are_one_line_and_leave_nothing(more, line, tmp_path, capsys):
    assert cli.main(["cluster", "render", *EXAMPLE, "--out", str(tmp_path / "out"), *more]) == 2
    assert capsys.readouterr().err.startswith(f"error: {line}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("pair", ["AWS_SECRET_ACCESS_KEY=hunter2", "DB=postgres://me:hunter2@db", "HF_TOKEN=hunter2"])
def test_variables_that_look_like_secrets_are_refused_and_not_repeated(pair, tmp_path, capsys, monkeypatch):
    argv = ["cluster", "render", *EXAMPLE, "--out", str(tmp_path / "out")]
    assert cli.main([*argv, "--env", f"A=b,{pair}"]) == 2
    (tmp_path / "options.yaml").write_text(f"env: ['{pair}']\n")
    assert cli.main([*argv, "--spec", str(tmp_path / "options.yaml")]) == 2
    out, err = capsys.readouterr()
    assert err.count("error: --env: expected ") == 2 and "hunter2" not in out + err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("image", "warned"),
    [
        ("tandem:0.1.0", True),
        ("team/tandem:1", True),
        ("registry.example.com/tandem:1", False),
        ("localhost/tandem:1", False),
        ("127.0.0.1:5000/tandem:1", False),
    ],
)
def test_an_image_without_a_registry_is_warned_of(image, warned, tmp_path, capsys):
    render(tmp_path / "out", "--image", image)
    assert (f"warning: --image {image} names no registry" in capsys.readouterr().err) is warned


def test_an_ingress_without_a_certificate_is_warned_of(tmp_path, capsys):
    render(tmp_path / "out", "--ingress-host", "tandem.example.com")
    assert "clients send their keys in clear text" in capsys.readouterr().err

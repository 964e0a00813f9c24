"""KubeRay's files as they are used: nodes end gently, files do not share objects, the token is where they say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from support.clusters import CHECKED_IN, check_serve, cluster_of, pod_templates, ray_document
from tandem_cluster.pods import DRAIN
from tandem_cluster.serve_variables import CONTROLLER
from tandem_workers.endpoint.keys import DIGESTS, KEYS
from tandem_workers.endpoint.proxy import HERE, HOOK

KUBERAY = [path for path in CHECKED_IN.values() if path.parent.name == "kuberay"]


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_nodes_drain_before_kubernetes_kills_them(path):
    document = ray_document(path.read_text())
    cluster = cluster_of(document)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert "lifecycle" not in container, "a hook before SIGTERM takes its time from what is in hand"
        (drain_s,) = (float(v["value"]) for v in container["env"] if v["name"] == DRAIN)
        assert drain_s + 15 <= group["template"]["spec"]["terminationGracePeriodSeconds"]
        if document["kind"] == "RayService":
            assert drain_s >= check_serve(document["spec"]["serveConfigV2"]).timeout_s


def test_the_installed_ray_drains_for_as_long_as_the_variable_says():
    read = f"from ray._private.ray_constants import {DRAIN}; print({DRAIN})"
    argv = [sys.executable, "-c", read]
    assert subprocess.run(argv, env=os.environ | {DRAIN: "77"}, capture_output=True, text=True).stdout == "77.0\n"


def test_no_two_files_make_the_same_object():
    """Deleting one file would take the other's, and KubeRay names services and secrets after its documents."""
    seen: list[tuple[str, str]] = []
    for path in KUBERAY:
        account, document = yaml.safe_load_all(path.read_text())
        name = document["metadata"]["name"]
        seen += [(account["kind"], account["metadata"]["name"]), ("ray", name)]
        users = [t["spec"].get("serviceAccountName") for t in pod_templates(document)]
        assert set(users) - {None} == {account["metadata"]["name"]} == {name}
        assert f"kubectl apply -f {path.name}" in path.read_text()
        assert "kubectl create -f" not in path.read_text()
    assert len(seen) == len(set(seen)) == 2 * len(KUBERAY)


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_the_lines_that_fetch_the_token_do(tmp_path):
    """With a kubectl that has the one secret that KubeRay makes: of the cluster's name, under auth_token."""
    text = CHECKED_IN["raycluster.yaml"].read_text()
    name = ray_document(text)["metadata"]["name"]
    lines = re.findall(r"^#   (export .+)$", text, re.M)
    (tmp_path / "kubectl").write_text(
        f"""#!/bin/sh\n[ "$*" = "get secret {name} -o jsonpath={{.data.auth_token}}" ] && printf Yi1z | cat\n"""
    )
    (tmp_path / "kubectl").chmod(0o755)
    script = "\n".join([*lines, 'echo "$RAY_AUTH_MODE $RAY_AUTH_TOKEN"'])
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    ran = subprocess.run(["bash", "-c", script], env=path, capture_output=True, text=True, check=True)
    assert ran.stdout == "token b-s\n"


def test_pods_of_the_endpoint_have_what_its_proxies_need_and_no_plain_keys():
    (path,) = (path for path in KUBERAY if path.stem == "rayservice")
    cluster = cluster_of(ray_document(path.read_text()))
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        variables = {variable["name"]: variable for variable in container["env"]}
        assert variables[HOOK]["value"] == HERE
        assert CONTROLLER.items() <= {name: variable.get("value") for name, variable in variables.items()}.items()
        assert variables[DIGESTS]["valueFrom"]["secretKeyRef"]["key"] == DIGESTS
        assert KEYS not in variables

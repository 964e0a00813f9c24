"""KubeRay's documents: a cluster that stays, a job with a cluster of its own, the endpoint. Pure.

Fields are those of KubeRay 1.5.1 and later: since then workers' labels reach the autoscaler, and clusters have tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cluster.planned import Group
from cluster.pods import (
    HEAD_MEMORY_GIB,
    KEYS,
    KEYS_SECRET,
    S3_SECRET,
    head_pod,
    locked_down,
    pod_security,
    start_params,
    worker_pod,
)
from cluster.render import (
    RAY_VERSION,
    SERVE_PORT,
    Block,
    Deployment,
    Settings,
    entrypoint,
    serve_config,
    to_yaml,
    with_header,
)

API = "ray.io/v1"
RETRIES = 3  # of a whole job, each on a new cluster; the same command goes on from what was committed
KEPT_S = 600  # how long a finished job's cluster stays, for its logs
JOB, ENDPOINT = "-job", "-endpoint"  # after the name, so that no two files make or delete the same object

NEEDS = "Needs KubeRay 1.5.1 or newer, NVIDIA's device plugin, and the image where the nodes can pull it."


def credentials(name: str) -> str:
    return f"""
Objects of S3 are reached by the identity of the service account {name} (on EKS its role, by annotation or
Pod Identity); where there is none, by a secret that is not in this file:
  kubectl create secret generic {S3_SECRET} --from-literal=AWS_ACCESS_KEY_ID=... \\
    --from-literal=AWS_SECRET_ACCESS_KEY=... [--from-literal=AWS_ENDPOINT_URL=...]
""".strip()


def cluster_lines(name: str) -> str:
    """KubeRay keeps a cluster's token in a secret of the cluster's name."""
    return f"""
A Ray cluster that stays, for `tandem submit`. kubectl apply -f raycluster.yaml
{NEEDS}
KubeRay makes the token that lets you in. To send a job, with the port forwarded in another terminal:
  kubectl port-forward service/{name}-head-svc 8265
  export RAY_AUTH_MODE=token
  export RAY_AUTH_TOKEN=$(kubectl get secret {name} -o jsonpath='{{.data.auth_token}}' | base64 -d)
  tandem submit --address http://127.0.0.1:8265 --follow -- generate ...
{credentials(name)}
"""


def job_lines(name: str) -> str:
    return f"""
One dataset, on a cluster that lives as long as the job. kubectl apply -f rayjob.yaml
{NEEDS}
A job that fails is tried again on a new cluster and goes on from the shards that are there. One that has ended runs
again, and goes on likewise, after kubectl delete -f rayjob.yaml.
{credentials(name)}
"""


def service_lines(name: str) -> str:
    return f"""
The endpoint, at port {SERVE_PORT} of service/{name}-serve-svc. Clients are asked for keys, which have no default:
  kubectl create secret generic {KEYS_SECRET} --from-literal={KEYS}=KEY,KEY
  kubectl apply -f rayservice.yaml
{NEEDS}
{credentials(name)}
"""


def raycluster(deployment: Deployment) -> str:
    settings = deployment.settings
    # a job starts only where the GPUs that it asks for are there, so by default none are given back
    groups = [
        worker_group(settings, group, 0 if settings.release_refiners and group.spot else group.count, group.count)
        for group in deployment.groups
    ]
    document = resource("RayCluster", settings, cluster_spec(settings, groups))
    return with_header(cluster_lines(settings.name), deployment, to_yaml(service_account(settings), document))


def rayjob(deployment: Deployment) -> str:
    settings = replace(deployment.settings, name=deployment.settings.name + JOB)
    groups = [worker_group(settings, group, group.count, group.count) for group in deployment.groups]
    spec = {
        "entrypoint": entrypoint(deployment),
        "submissionMode": "K8sJobMode",
        "backoffLimit": RETRIES,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": KEPT_S,
        "submitterConfig": {"backoffLimit": 2},
        "submitterPodTemplate": submitter(settings),
        "rayClusterSpec": cluster_spec(settings, groups),
    }
    document = resource("RayJob", settings, spec)
    return with_header(job_lines(settings.name), deployment, to_yaml(service_account(settings), document))


def rayservice(deployment: Deployment) -> str:
    settings = replace(deployment.settings, name=deployment.settings.name + ENDPOINT)
    groups = []
    for group in deployment.groups:
        # following the load, one replica of each role stays; the rest comes when Serve asks for it
        first = next(other for other in deployment.groups if other.role == group.role) == group
        least = int(first) if settings.autoscale else group.count
        groups.append(worker_group(settings, group, least, group.count, serving=True))
    spec = {
        "upgradeStrategy": {"type": "NewCluster"},
        "excludeHeadPodFromServeSvc": True,
        "serveConfigV2": Block(to_yaml(serve_config(deployment))),
        "rayClusterConfig": cluster_spec(settings, groups, serving=True),
    }
    document = resource("RayService", settings, spec)
    return with_header(service_lines(settings.name), deployment, to_yaml(service_account(settings), document))


def resource(kind: str, settings: Settings, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": settings.name, "labels": {"app.kubernetes.io/name": "tandem"}}
    return {"apiVersion": API, "kind": kind, "metadata": metadata, "spec": spec}


def service_account(settings: Settings) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": settings.name, "labels": {"app.kubernetes.io/name": "tandem"}}
    if settings.role_arn:
        metadata["annotations"] = {"eks.amazonaws.com/role-arn": settings.role_arn}
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}


def cluster_spec(settings: Settings, groups: list[dict[str, Any]], serving: bool = False) -> dict[str, Any]:
    amounts = {"cpu": "500m", "memory": "1Gi"}
    head_params = {"num-cpus": "0", "dashboard-host": "0.0.0.0", **start_params(HEAD_MEMORY_GIB)}
    return {
        "rayVersion": RAY_VERSION,
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "upscalingMode": "Default",
            "idleTimeoutSeconds": 60 * settings.idle_minutes,
            "imagePullPolicy": "IfNotPresent",
            "securityContext": locked_down(),
            "resources": {"limits": amounts, "requests": amounts},
        },
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            "rayStartParams": head_params,
            "template": head_pod(settings, serving),
        },
        "workerGroupSpecs": groups,
    }


def worker_group(settings: Settings, group: Group, least: int, most: int, serving: bool = False) -> dict[str, Any]:
    return {
        "groupName": group.name,
        "replicas": least,
        "minReplicas": least,
        "maxReplicas": most,
        "labels": group.labels,
        "rayStartParams": start_params(settings.memory_gib),
        "template": worker_pod(settings, group, serving),
    }


def submitter(settings: Settings) -> dict[str, Any]:
    """The pod that hands the job to the cluster and follows its log."""
    amounts = {"cpu": "500m", "memory": "1Gi"}
    submits = {
        "name": "ray-job-submitter",
        "image": settings.image,
        "imagePullPolicy": "IfNotPresent",
        "securityContext": locked_down(),
        "resources": {"limits": amounts, "requests": amounts},
    }
    security = pod_security()
    spec = {"restartPolicy": "Never", "automountServiceAccountToken": False, "securityContext": security}
    return {"spec": spec | {"containers": [submits]}}

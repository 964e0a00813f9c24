"""KubeRay's documents: a cluster that stays, a job with a cluster of its own, the endpoint. Pure.

Fields are those of KubeRay 1.5.1 and later: since then workers' labels reach the autoscaler, and clusters have tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cluster.extras import REDIS_KEY, extras, kubectl, metadata
from cluster.pods import (
    HEAD_MEMORY_GIB,
    KEYS,
    KEYS_SECRET,
    S3_SECRET,
    head_pod,
    locked_down,
    pod_spec,
    start_params,
    worker_pod,
)
from cluster.render import (
    RAY_VERSION,
    SERVE_PORT,
    Block,
    Deployment,
    Pool,
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


def credentials(settings: Settings) -> str:
    lines = f"""
Objects of S3 are reached by the identity of the service account {settings.name} (on EKS its role, by annotation or
Pod Identity); where there is none, by a secret that is not in this file:
  {kubectl(settings)} create secret generic {S3_SECRET} --from-literal=AWS_ACCESS_KEY_ID=... \\
    --from-literal=AWS_SECRET_ACCESS_KEY=... [--from-literal=AWS_ENDPOINT_URL=...]
""".strip()
    if settings.image_pull_secrets or settings.env_from_secret:
        names = ", ".join([*settings.image_pull_secrets, *settings.env_from_secret])
        lines += f"\nSecrets that have to be there: {names}."
    return lines


def redis_lines(settings: Settings) -> str:
    if not settings.gcs_redis:
        return ""
    text = f"\nThe head's state is kept in Redis at {settings.gcs_redis}, so that a new head goes on with it."
    if name := settings.gcs_redis_secret:
        text += f" Its password:\n  {kubectl(settings)} create secret generic {name} --from-literal={REDIS_KEY}=..."
    return text


def cluster_lines(settings: Settings) -> str:
    """KubeRay keeps a cluster's token in a secret of the cluster's name."""
    name, program = settings.name, kubectl(settings)
    return f"""
A Ray cluster that stays, for `tandem submit`. kubectl apply -f raycluster.yaml
{NEEDS}
KubeRay makes the token that lets you in. To send a job, with the port forwarded in another terminal:
  {program} port-forward service/{name}-head-svc 8265
  export RAY_AUTH_MODE=token
  export RAY_AUTH_TOKEN=$({program} get secret {name} -o jsonpath='{{.data.auth_token}}' | base64 -d)
  tandem submit --address http://127.0.0.1:8265 --follow -- generate ...
{credentials(settings)}{redis_lines(settings)}
"""


def job_lines(settings: Settings) -> str:
    text = f"""
One dataset, on a cluster that lives as long as the job. kubectl apply -f rayjob.yaml
{NEEDS}
A job that fails is tried again on a new cluster and goes on from the shards that are there. One that has ended runs
again, and goes on likewise, after kubectl delete -f rayjob.yaml.
{credentials(settings)}
"""
    if settings.deadline_s:
        text += f"KubeRay ends a try {settings.deadline_s} s after it began; what is committed is kept.\n"
    return text


def service_lines(settings: Settings) -> str:
    return f"""
The endpoint, at port {SERVE_PORT} of service/{settings.name}-serve-svc. Clients are asked for keys,
which have no default:
  {kubectl(settings)} create secret generic {KEYS_SECRET} --from-literal={KEYS}=KEY,KEY
  kubectl apply -f rayservice.yaml
{NEEDS}
{credentials(settings)}{redis_lines(settings)}
"""


def raycluster(deployment: Deployment) -> str:
    settings = deployment.settings
    # a job starts only where the GPUs that it asks for are there, so by default none are given back
    pools = [
        replace(pool, least=0) if settings.release_refiners and pool.group.spot else pool for pool in deployment.pools()
    ]
    spec = cluster_spec(settings, pools) | fault_tolerance(settings) | suspended(settings)
    return to_file(cluster_lines(settings), deployment, settings, "RayCluster", spec, pools)


def rayjob(deployment: Deployment) -> str:
    settings = replace(deployment.settings, name=deployment.settings.name + JOB)
    pools = deployment.pools()
    spec = {
        "entrypoint": entrypoint(deployment),
        "submissionMode": "K8sJobMode",
        "backoffLimit": RETRIES,
        **({"activeDeadlineSeconds": settings.deadline_s} if settings.deadline_s else {}),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": KEPT_S,
        **suspended(settings),
        "submitterConfig": {"backoffLimit": 2},
        "submitterPodTemplate": submitter(settings),
        "rayClusterSpec": cluster_spec(settings, pools),
    }
    return to_file(job_lines(settings), deployment, settings, "RayJob", spec, pools)


def rayservice(deployment: Deployment) -> str:
    settings = replace(deployment.settings, name=deployment.settings.name + ENDPOINT)
    pools = []
    for group in deployment.groups:
        # following the load, one replica of each role stays; the rest comes when Serve asks for it
        first = next(other for other in deployment.groups if other.role == group.role) == group
        pools.append(Pool(group, int(first) if settings.autoscale else group.count, group.count))
    spec = {
        "upgradeStrategy": {"type": "NewCluster"},
        "excludeHeadPodFromServeSvc": True,
        "serveConfigV2": Block(to_yaml(serve_config(deployment))),
        "rayClusterConfig": cluster_spec(settings, pools, serving=True) | fault_tolerance(settings),
    }
    return to_file(service_lines(settings), deployment, settings, "RayService", spec, pools)


def to_file(
    lines: str, deployment: Deployment, settings: Settings, kind: str, spec: dict[str, Any], pools: list[Pool]
) -> str:
    """A document with its service account before it and what was asked for beside it."""
    document = {"apiVersion": API, "kind": kind, "metadata": metadata(settings, kueue=True), "spec": spec}
    beside = extras(settings, pools, serving=kind == "RayService")
    return with_header(lines, deployment, to_yaml(service_account(settings), document, *beside))


def service_account(settings: Settings) -> dict[str, Any]:
    about = metadata(settings)
    if settings.role_arn:
        about["annotations"] = {"eks.amazonaws.com/role-arn": settings.role_arn}
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": about}


def suspended(settings: Settings) -> dict[str, Any]:
    return {"suspend": True} if settings.suspend else {}


def fault_tolerance(settings: Settings) -> dict[str, Any]:
    """What lets a cluster outlive its head pod: its state in Redis."""
    if not settings.gcs_redis:
        return {}
    options: dict[str, Any] = {"redisAddress": settings.gcs_redis}
    if settings.gcs_redis_secret:
        key = {"secretKeyRef": {"name": settings.gcs_redis_secret, "key": REDIS_KEY}}
        options["redisPassword"] = {"valueFrom": key}
    return {"gcsFaultToleranceOptions": options}


def cluster_spec(settings: Settings, pools: list[Pool], serving: bool = False) -> dict[str, Any]:
    """Ray's autoscaler runs where there is something to scale; Kueue takes no cluster that has one."""
    scales = any(pool.least < pool.most for pool in pools)
    head_params = {"num-cpus": "0", "dashboard-host": "0.0.0.0", **start_params(HEAD_MEMORY_GIB)}
    return {
        "rayVersion": RAY_VERSION,
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": scales,
        **({"autoscalerOptions": autoscaler(settings)} if scales else {}),
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            "rayStartParams": head_params,
            "template": head_pod(settings, serving, scales),
        },
        "workerGroupSpecs": [worker_group(settings, pool, serving) for pool in pools],
    }


def autoscaler(settings: Settings) -> dict[str, Any]:
    amounts = {"cpu": "500m", "memory": "1Gi"}
    return {
        "version": "v2",
        "upscalingMode": "Default",
        "idleTimeoutSeconds": 60 * settings.idle_minutes,
        "imagePullPolicy": "IfNotPresent",
        "securityContext": locked_down(),
        "resources": {"limits": amounts, "requests": amounts},
    }


def worker_group(settings: Settings, pool: Pool, serving: bool) -> dict[str, Any]:
    return {
        "groupName": pool.group.name,
        "replicas": pool.least,
        "minReplicas": pool.least,
        "maxReplicas": pool.most,
        "labels": pool.group.labels,
        "rayStartParams": start_params(settings.memory_gib),
        "template": worker_pod(settings, pool.group, serving),
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
    return {"spec": {"automountServiceAccountToken": False, **pod_spec(settings), "containers": [submits]}}

"""Files for KubeRay: a permanent cluster, a job with its own cluster, the endpoint. Pure.

They need KubeRay 1.5.1 or later, where workers' labels reach the autoscaler and clusters have tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tandem_cluster.extras import REDIS_KEY, extras, kubectl, metadata
from tandem_cluster.pods import (
    HEAD_MEMORY_GIB,
    KEY_DIGESTS,
    KEYS_SECRET,
    S3_SECRET,
    head_pod,
    locked_down,
    pod_spec,
    start_params,
    worker_pod,
)
from tandem_cluster.render import (
    RAY_VERSION,
    SERVE_PORT,
    BlockText,
    Deployment,
    NodePool,
    RenderSettings,
    entrypoint,
    serve_config,
    to_yaml,
    with_header,
)

API = "ray.io/v1"
RETRIES = 3  # of a whole job, each on a new cluster that resumes from the committed shards
KEPT_S = 600  # how long a finished job's cluster stays, for its logs
JOB, ENDPOINT = "-job", "-endpoint"  # suffixes of the name, so that no two files create or delete the same object

NEEDS = "Needs KubeRay 1.5.1 or newer, NVIDIA's device plugin, and the image where the nodes can pull it."


def credentials(settings: RenderSettings) -> str:
    lines = f"""
Access to S3 is by the identity of the service account {settings.name} (on EKS its role, by annotation or
Pod Identity), or else by a secret that is not in this file:
  {kubectl(settings)} create secret generic {S3_SECRET} --from-literal=AWS_ACCESS_KEY_ID=... \\
    --from-literal=AWS_SECRET_ACCESS_KEY=... [--from-literal=AWS_ENDPOINT_URL=...]
""".strip()
    if settings.image_pull_secrets or settings.env_from_secret:
        names = ", ".join([*settings.image_pull_secrets, *settings.env_from_secret])
        lines += f"\nSecrets that must exist: {names}."
    return lines


def redis_lines(settings: RenderSettings) -> str:
    if not settings.gcs_redis:
        return ""
    text = f"\nThe head's state is kept in Redis at {settings.gcs_redis}, so that a new head takes it over."
    if name := settings.gcs_redis_secret:
        text += f" Its password:\n  {kubectl(settings)} create secret generic {name} --from-literal={REDIS_KEY}=..."
    return text


def cluster_lines(settings: RenderSettings) -> str:
    """KubeRay keeps a cluster's token in a secret of the cluster's name."""
    name, program = settings.name, kubectl(settings)
    return f"""
A permanent Ray cluster for `tandem submit`. kubectl apply -f raycluster.yaml
{NEEDS}
KubeRay makes the access token. To submit a job, forward the port in another terminal (first line):
  {program} port-forward service/{name}-head-svc 8265
  export RAY_AUTH_MODE=token
  export RAY_AUTH_TOKEN=$({program} get secret {name} -o jsonpath='{{.data.auth_token}}' | base64 -d)
  tandem submit --address http://127.0.0.1:8265 --follow -- generate ...
{credentials(settings)}{redis_lines(settings)}
"""


def job_lines(settings: RenderSettings) -> str:
    text = f"""
One dataset, on a cluster that exists only for this job. kubectl apply -f rayjob.yaml
{NEEDS}
A job that fails is retried on a new cluster and resumes from the committed shards. A job that has ended can be
resumed in the same way after kubectl delete -f rayjob.yaml.
{credentials(settings)}
"""
    if settings.deadline_s:
        text += f"KubeRay ends a try {settings.deadline_s} s after it began; committed shards are kept.\n"
    return text


def service_lines(settings: RenderSettings) -> str:
    return f"""
The endpoint, at port {SERVE_PORT} of service/{settings.name}-serve-svc. Clients need API keys,
which have no default; the cluster knows their SHA-256 digests alone, separated by commas:
  {kubectl(settings)} create secret generic {KEYS_SECRET} \\
    --from-literal={KEY_DIGESTS}=$(printf %s KEY | sha256sum | cut -d' ' -f1)
  kubectl apply -f rayservice.yaml
{NEEDS}
{credentials(settings)}{redis_lines(settings)}
"""


def raycluster(deployment: Deployment) -> str:
    settings = deployment.settings
    # a job starts only if its GPUs are there, so by default the cluster does not scale down
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
        # with autoscaling one replica of each role stays; Serve requests the others
        first = next(other for other in deployment.groups if other.role == group.role) == group
        pools.append(NodePool(group, int(first) if settings.autoscale else group.count, group.count))
    spec = {
        "upgradeStrategy": {"type": "NewCluster"},
        "excludeHeadPodFromServeSvc": True,
        "serveConfigV2": BlockText(to_yaml(serve_config(deployment))),
        "rayClusterConfig": cluster_spec(settings, pools, serving=True) | fault_tolerance(settings),
    }
    return to_file(service_lines(settings), deployment, settings, "RayService", spec, pools)


def to_file(
    lines: str, deployment: Deployment, settings: RenderSettings, kind: str, spec: dict[str, Any], pools: list[NodePool]
) -> str:
    """The file: a service account, the document, and the optional objects that were asked for."""
    document = {"apiVersion": API, "kind": kind, "metadata": metadata(settings, kueue=True), "spec": spec}
    optional = extras(settings, pools, serving=kind == "RayService")
    return with_header(lines, deployment, to_yaml(service_account(settings), document, *optional))


def service_account(settings: RenderSettings) -> dict[str, Any]:
    about = metadata(settings)
    if settings.role_arn:
        about["annotations"] = {"eks.amazonaws.com/role-arn": settings.role_arn}
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": about}


def suspended(settings: RenderSettings) -> dict[str, Any]:
    return {"suspend": True} if settings.suspend else {}


def fault_tolerance(settings: RenderSettings) -> dict[str, Any]:
    """GCS fault tolerance: the cluster's state is kept in Redis, so that it outlives its head pod."""
    if not settings.gcs_redis:
        return {}
    options: dict[str, Any] = {"redisAddress": settings.gcs_redis}
    if settings.gcs_redis_secret:
        key = {"secretKeyRef": {"name": settings.gcs_redis_secret, "key": REDIS_KEY}}
        options["redisPassword"] = {"valueFrom": key}
    return {"gcsFaultToleranceOptions": options}


def cluster_spec(settings: RenderSettings, pools: list[NodePool], serving: bool = False) -> dict[str, Any]:
    """Spec of a RayCluster. It has Ray's autoscaler only if a group can scale, because Kueue does not admit one."""
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


def autoscaler(settings: RenderSettings) -> dict[str, Any]:
    amounts = {"cpu": "500m", "memory": "1Gi"}
    return {
        "version": "v2",
        "upscalingMode": "Default",
        "idleTimeoutSeconds": 60 * settings.idle_minutes,
        "imagePullPolicy": "IfNotPresent",
        "securityContext": locked_down(),
        "resources": {"limits": amounts, "requests": amounts},
    }


def worker_group(settings: RenderSettings, pool: NodePool, serving: bool) -> dict[str, Any]:
    return {
        "groupName": pool.group.name,
        "replicas": pool.least,
        "minReplicas": pool.least,
        "maxReplicas": pool.most,
        "labels": pool.group.labels,
        "rayStartParams": start_params(settings.memory_gib),
        "template": worker_pod(settings, pool.group, serving),
    }


def submitter(settings: RenderSettings) -> dict[str, Any]:
    """The pod that submits the job to the cluster and follows its log."""
    amounts = {"cpu": "500m", "memory": "1Gi"}
    submits = {
        "name": "ray-job-submitter",
        "image": settings.image,
        "imagePullPolicy": "IfNotPresent",
        "securityContext": locked_down(),
        "resources": {"limits": amounts, "requests": amounts},
    }
    return {"spec": {"automountServiceAccountToken": False, **pod_spec(settings), "containers": [submits]}}

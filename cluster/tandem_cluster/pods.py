"""Pods of a Ray cluster on Kubernetes: containers, probes, volumes, node affinity. Pure."""

from __future__ import annotations

from typing import Any

from tandem_cluster.plan_file import Group
from tandem_cluster.render import SERVE_PORT, RenderSettings

USER = 1000  # the image's
CACHE, SPILL = "/cache", "/spill"
S3_SECRET = "tandem-s3"  # AWS_ACCESS_KEY_ID and others, if pods have no cloud identity
KEYS_SECRET, KEY_DIGESTS = "tandem-api-keys", "TANDEM_API_KEY_DIGESTS"
METRICS_PORT = 8080
INSTANCE = "app.kubernetes.io/instance"
KUEUE = "kueue.x-k8s.io/"  # prefix of Kueue's labels
HEAD_CPUS, HEAD_MEMORY_GIB = 4, 16
STORE_SHARE = 0.25  # of a pod's memory; Ray's default is 0.3, but of /dev/shm
LOGS_GIB = 5
# Kubernetes ends a pod by SIGTERM and later SIGKILL. In between Ray drains the node: it accepts no new work, and has
# this long to finish what runs. A `ray stop` before SIGTERM would kill it at once.
DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
SERVE_DRAIN_S = 120  # the endpoint's limit of a request
JOB_DRAIN_S = 30  # lost work is made again; clouds give spot nodes 30 to 120 s
KILL_S = 30  # for Ray's own processes to end, after draining
RAYLET = "http://127.0.0.1:52365/api/local_raylet_healthz"
GCS = "http://127.0.0.1:8265/api/gcs_healthz"
PROXY = f"http://127.0.0.1:{SERVE_PORT}/-/healthz"
DRIVER_CHECK = ["python", "/opt/check_driver.py"]  # of the image: cluster/tandem_cluster/driver.py
PROBE = "import sys, urllib.request as web; [web.urlopen(url, timeout=5) for url in sys.argv[1:]]"

# How clouds label the GPUs of a node: GKE's label and that of NVIDIA's feature discovery. Karpenter's is the kind.
GKE_NAMES = {
    "t4": ["nvidia-tesla-t4"],
    "l4": ["nvidia-l4"],
    "a100": ["nvidia-tesla-a100", "nvidia-a100-80gb"],
    "h100": ["nvidia-h100-80gb", "nvidia-h100-mega-80gb"],
    "h200": ["nvidia-h200-141gb"],
}
PRODUCTS = {
    "t4": ["Tesla-T4"],
    "l4": ["NVIDIA-L4"],
    "l20": ["NVIDIA-L20"],
    "l40s": ["NVIDIA-L40S"],
    "a10g": ["NVIDIA-A10G"],
    "a100": ["NVIDIA-A100-SXM4-40GB", "NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-PCIE-40GB", "NVIDIA-A100-80GB-PCIe"],
    "h100": ["NVIDIA-H100-80GB-HBM3", "NVIDIA-H100-PCIe"],
    "h200": ["NVIDIA-H200"],
}
# Labels and taints of spot nodes; Karpenter and EKS leave taints to their users
SPOT_LABELS = {
    "karpenter.sh/capacity-type": "spot",
    "eks.amazonaws.com/capacityType": "SPOT",
    "cloud.google.com/gke-spot": "true",
    "kubernetes.azure.com/scalesetpriority": "spot",
}


def locked_down() -> dict[str, Any]:
    """Security context without rights that Ray does not need."""
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True}


def pod_security() -> dict[str, Any]:
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def store_gib(memory_gib: int) -> int:
    return max(1, int(STORE_SHARE * memory_gib))


def start_params(memory_gib: int) -> dict[str, str]:
    """Flags of `ray start`, as the strings that KubeRay expects."""
    return {
        "object-store-memory": str(store_gib(memory_gib) << 30),
        "object-spilling-directory": SPILL,
        "metrics-export-port": str(METRICS_PORT),
    }


def drain_s(serving: bool) -> int:
    return SERVE_DRAIN_S if serving else JOB_DRAIN_S


def environment(settings: RenderSettings, serving: bool) -> list[dict[str, Any]]:
    own = dict(settings.serve_env) if serving else {}
    values = {"TANDEM_CACHE": CACHE, DRAIN: str(drain_s(serving)), **own, **dict(settings.env)}
    variables: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in values.items()]
    if serving:
        digests = {"secretKeyRef": {"name": KEYS_SECRET, "key": KEY_DIGESTS}}
        variables.append({"name": KEY_DIGESTS, "valueFrom": digests})
    return variables


def probes(live: list[str], ready: list[str]) -> dict[str, Any]:
    """Probes: Ray has five minutes to start before a restart, then it is probed every ten seconds."""

    def probe(urls: list[str], failures: int) -> dict[str, Any]:
        command = {"command": ["python", "-c", PROBE, *urls]}
        return {"exec": command, "periodSeconds": 10, "timeoutSeconds": 12, "failureThreshold": failures}

    return {"startupProbe": probe(live, 30), "livenessProbe": probe(live, 12), "readinessProbe": probe(ready, 3)}


def volumes(memory_gib: int, disk_gib: int) -> list[dict[str, Any]]:
    """Shared memory a little larger than the object store, and disk for spilled objects."""
    disk = {"cache": disk_gib // 2, "spill": disk_gib - disk_gib // 2, "ray-logs": LOGS_GIB}
    shared = {"medium": "Memory", "sizeLimit": f"{store_gib(memory_gib) + 1}Gi"}
    return [
        {"name": "shm", "emptyDir": shared},
        *({"name": name, "emptyDir": {"sizeLimit": f"{size}Gi"}} for name, size in disk.items()),
    ]


def mounts() -> list[dict[str, str]]:
    paths = {"shm": "/dev/shm", "cache": CACHE, "spill": SPILL, "ray-logs": "/tmp/ray"}
    return [{"name": name, "mountPath": path} for name, path in paths.items()]


def container(
    name: str,
    settings: RenderSettings,
    amounts: dict[str, str],
    ports: dict[str, int],
    serving: bool,
    health: dict[str, Any],
) -> dict[str, Any]:
    return {
        "name": name,
        "image": settings.image,
        "imagePullPolicy": "IfNotPresent",
        "securityContext": locked_down(),
        "env": environment(settings, serving),
        "envFrom": [
            {"secretRef": {"name": S3_SECRET, "optional": True}},
            *({"secretRef": {"name": name}} for name in settings.env_from_secret),
        ],
        "ports": [{"name": port_name, "containerPort": port} for port_name, port in ports.items()],
        "resources": {"limits": amounts, "requests": amounts},
        **health,
        "volumeMounts": mounts(),
    }


def amounts_of(cpus: int, memory_gib: int, disk_gib: int, gpus: int = 0) -> dict[str, str]:
    amounts = {"cpu": str(cpus), "memory": f"{memory_gib}Gi", "ephemeral-storage": f"{disk_gib + LOGS_GIB + 5}Gi"}
    return amounts | ({"nvidia.com/gpu": str(gpus)} if gpus else {})


def pod_labels(settings: RenderSettings) -> dict[str, str]:
    """Kubernetes labels of a pod: monitors and budgets select it by `INSTANCE`. Kueue's labels go on whole clusters."""
    own = {name: value for name, value in settings.object_labels if not name.startswith(KUEUE)}
    return {INSTANCE: settings.name, **own}


def pod_spec(settings: RenderSettings) -> dict[str, Any]:
    """The part of the spec that all pods share."""
    spec: dict[str, Any] = {"restartPolicy": "Never", "securityContext": pod_security()}
    if settings.priority_class:
        spec["priorityClassName"] = settings.priority_class
    if settings.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in settings.image_pull_secrets]
    return spec


def head_pod(settings: RenderSettings, serving: bool, scales: bool) -> dict[str, Any]:
    """The head: GCS, dashboard, the jobs' drivers and, if the cluster `scales`, the autoscaler, the only one that needs
    Kubernetes' API. It runs no stage, because it offers Ray no CPUs."""
    ports = {"gcs": 6379, "dashboard": 8265, "client": 10001, "metrics": METRICS_PORT}
    ports |= {"serve": SERVE_PORT} if serving else {}
    amounts = amounts_of(HEAD_CPUS, HEAD_MEMORY_GIB, settings.disk_gib)
    health = probes([RAYLET, GCS], [RAYLET, GCS])
    spec = {
        "serviceAccountName": settings.name,
        **({} if scales else {"automountServiceAccountToken": False}),
        **pod_spec(settings),
        "terminationGracePeriodSeconds": drain_s(serving) + KILL_S,
        "containers": [container("ray-head", settings, amounts, ports, serving, health)],
        "volumes": volumes(HEAD_MEMORY_GIB, settings.disk_gib),
    }
    annotations = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}
    return {"metadata": {"labels": pod_labels(settings), "annotations": annotations}, "spec": spec}


def worker_pod(settings: RenderSettings, group: Group, serving: bool) -> dict[str, Any]:
    """A worker with one GPU and the CPU cores that read, encode and store for it."""
    ports = {"metrics": METRICS_PORT} | ({"serve": SERVE_PORT} if serving else {})
    amounts = amounts_of(settings.cpus, settings.memory_gib, settings.disk_gib, gpus=1)
    health = probes([RAYLET], [RAYLET, PROXY] if serving else [RAYLET])
    spec = {
        "serviceAccountName": settings.name,
        "automountServiceAccountToken": False,
        **pod_spec(settings),
        "terminationGracePeriodSeconds": drain_s(serving) + KILL_S,
        "tolerations": tolerations(group),
        "affinity": {"nodeAffinity": node_affinity(group)},
        "initContainers": [driver_check(settings)],
        "containers": [container("ray-worker", settings, amounts, ports, serving, health)],
        "volumes": volumes(settings.memory_gib, settings.disk_gib),
    }
    return {"metadata": {"labels": pod_labels(settings)}, "spec": spec}


def driver_check(settings: RenderSettings) -> dict[str, Any]:
    """An init container that fails with one line in its log if the node's driver is too old for torch."""
    amounts = {"cpu": "500m", "memory": "1Gi", "nvidia.com/gpu": "1"}
    return {
        "name": "check-driver",
        "image": settings.image,
        "imagePullPolicy": "IfNotPresent",
        "command": DRIVER_CHECK,
        "securityContext": locked_down(),
        "resources": {"limits": amounts, "requests": amounts},
    }


def tolerations(group: Group) -> list[dict[str, str]]:
    """Tolerations for the taints of GPU nodes and, for groups that may run on spot nodes, of those."""
    kept = [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "sku", "operator": "Equal", "value": "gpu", "effect": "NoSchedule"},
    ]
    if group.spot:
        kept += [{"key": k, "operator": "Equal", "value": v, "effect": "NoSchedule"} for k, v in SPOT_LABELS.items()]
    return kept


def node_affinity(group: Group) -> dict[str, Any]:
    """Affinity to nodes with the kind of GPU, by any cloud's label; spot nodes are preferred or excluded."""
    names = {
        "tandem/gpu": [group.kind],  # for nodes without a cloud's label
        "karpenter.k8s.aws/instance-gpu-name": [group.kind],
        "cloud.google.com/gke-accelerator": GKE_NAMES.get(group.kind, []),
        "nvidia.com/gpu.product": PRODUCTS.get(group.kind, []),
    }
    not_spot = [{"key": key, "operator": "NotIn", "values": [value]} for key, value in SPOT_LABELS.items()]
    terms = [
        {"matchExpressions": [{"key": key, "operator": "In", "values": values}, *([] if group.spot else not_spot)]}
        for key, values in names.items()
        if values
    ]
    affinity: dict[str, Any] = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    if group.spot:
        affinity["preferredDuringSchedulingIgnoredDuringExecution"] = [
            {"weight": 100, "preference": {"matchExpressions": [{"key": key, "operator": "In", "values": [value]}]}}
            for key, value in SPOT_LABELS.items()
        ]
    return affinity

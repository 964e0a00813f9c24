"""Objects of Kubernetes beside KubeRay's own: a monitor of metrics, disruption budgets, an ingress. Pure."""

from __future__ import annotations

from typing import Any

from cluster.pods import INSTANCE, KUEUE
from cluster.render import SERVE_PORT, Pool, Settings

REDIS_KEY = "password"  # of the secret that --gcs-redis-secret names


def kubectl(settings: Settings) -> str:
    """The program with the namespace of the files."""
    return f"kubectl -n {settings.namespace}" if settings.namespace else "kubectl"


def metadata(settings: Settings, name: str = "", kueue: bool = False) -> dict[str, Any]:
    """Of an object. Kueue's labels belong on what it admits alone."""
    own = {key: value for key, value in settings.object_labels if kueue or not key.startswith(KUEUE)}
    place = {"namespace": settings.namespace} if settings.namespace else {}
    return {"name": name or settings.name, **place, "labels": {"app.kubernetes.io/name": "tandem", **own}}


def extras(settings: Settings, pools: list[Pool], serving: bool) -> list[dict[str, Any]]:
    """What was asked for beside a cluster, a job or the endpoint."""
    found = []
    if settings.pod_monitor:
        found.append(pod_monitor(settings))
    if settings.disruption_budgets:
        found += disruption_budgets(settings, pools if serving else [])
    if serving and settings.ingress_host:
        found.append(ingress(settings, settings.ingress_host))
    return found


def pod_monitor(settings: Settings) -> dict[str, Any]:
    """For the Prometheus operator: Ray's and our metrics of all nodes, each with the name of its cluster."""
    spec = {
        "selector": {"matchLabels": {INSTANCE: settings.name}},
        "podTargetLabels": ["ray.io/cluster"],
        "podMetricsEndpoints": [{"port": "metrics"}],
    }
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": metadata(settings),
        "spec": spec,
    }


def disruption_budgets(settings: Settings, serving: list[Pool]) -> list[dict[str, Any]]:
    """The head is never evicted; of each group that serves, one pod at a time.

    Kubernetes does not know the scale of a RayCluster, so budgets of its pods have to be least numbers.
    """
    least = {"headgroup": 1} | {pool.group.name: max(1, pool.least - 1) for pool in serving if pool.least}
    return [
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": metadata(settings, f"{settings.name}-{group}"),
            "spec": {
                "minAvailable": count,
                "selector": {"matchLabels": {INSTANCE: settings.name, "ray.io/group": group}},
            },
        }
        for group, count in least.items()
    ]


def ingress(settings: Settings, host: str) -> dict[str, Any]:
    """The endpoint's service under a name of its own."""
    service = {"name": f"{settings.name}-serve-svc", "port": {"number": SERVE_PORT}}
    path = {"path": "/", "pathType": "Prefix", "backend": {"service": service}}
    spec: dict[str, Any] = {"rules": [{"host": host, "http": {"paths": [path]}}]}
    if settings.ingress_class:
        spec["ingressClassName"] = settings.ingress_class
    if settings.ingress_tls_secret:
        spec["tls"] = [{"hosts": [host], "secretName": settings.ingress_tls_secret}]
    return {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": metadata(settings), "spec": spec}

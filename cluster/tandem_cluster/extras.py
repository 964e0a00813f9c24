"""Optional Kubernetes objects: a monitor of metrics, disruption budgets, an ingress. Pure."""

from __future__ import annotations

from typing import Any

from tandem_cluster.pods import INSTANCE, KUEUE
from tandem_cluster.render import SERVE_PORT, NodePool, RenderSettings

REDIS_KEY = "password"  # of the secret that --gcs-redis-secret names


def kubectl(settings: RenderSettings) -> str:
    """The kubectl command with the namespace of the files."""
    return f"kubectl -n {settings.namespace}" if settings.namespace else "kubectl"


def metadata(settings: RenderSettings, name: str = "", kueue: bool = False) -> dict[str, Any]:
    """Metadata of an object. Kueue's labels go only on objects that Kueue admits."""
    own = {key: value for key, value in settings.object_labels if kueue or not key.startswith(KUEUE)}
    place = {"namespace": settings.namespace} if settings.namespace else {}
    return {"name": name or settings.name, **place, "labels": {"app.kubernetes.io/name": "tandem", **own}}


def extras(settings: RenderSettings, pools: list[NodePool], serving: bool) -> list[dict[str, Any]]:
    """The optional objects that were asked for."""
    found = []
    if settings.pod_monitor:
        found.append(pod_monitor(settings))
    if settings.disruption_budgets:
        found += disruption_budgets(settings, pools if serving else [])
    if serving and settings.ingress_host:
        found.append(ingress(settings, settings.ingress_host))
    return found


def pod_monitor(settings: RenderSettings) -> dict[str, Any]:
    """A PodMonitor for the Prometheus operator: metrics of all nodes, labelled with the cluster's name."""
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


def disruption_budgets(settings: RenderSettings, serving: list[NodePool]) -> list[dict[str, Any]]:
    """Budgets that never evict the head, and evict one pod at a time of each serving group.

    Kubernetes does not know how many pods a RayCluster should have, so these budgets set `minAvailable`.
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


def ingress(settings: RenderSettings, host: str) -> dict[str, Any]:
    """An Ingress that gives the endpoint's service a host name."""
    service = {"name": f"{settings.name}-serve-svc", "port": {"number": SERVE_PORT}}
    path = {"path": "/", "pathType": "Prefix", "backend": {"service": service}}
    spec: dict[str, Any] = {"rules": [{"host": host, "http": {"paths": [path]}}]}
    if settings.ingress_class:
        spec["ingressClassName"] = settings.ingress_class
    if settings.ingress_tls_secret:
        spec["tls"] = [{"hosts": [host], "secretName": settings.ingress_tls_secret}]
    return {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": metadata(settings), "spec": spec}

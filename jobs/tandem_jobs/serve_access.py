"""Who may reach the endpoint: names of the server, other sites, and what Ray's processes need to know of keys."""

from __future__ import annotations

import os
import socket

from tandem_cluster.server import LOOPBACK
from tandem_jobs.serve_options import AppSpec, ServeSpec
from tandem_workers.endpoint.keys import DIGESTS, hide_keys, key_digests
from tandem_workers.endpoint.middleware import ADDRESSES, ANY_HOST
from tandem_workers.endpoint.proxy import HERE, HOOK, ORIGINS

ALL_NETWORKS = ("0.0.0.0", "::")


def allowed_hosts(spec: AppSpec) -> tuple[str, ...]:
    """Names by which the server may be addressed.

    A page whose name was rebound to this server's address has no key, so with keys any name will do. An address in
    numbers cannot be rebound. A config file does not say here where Serve listens: it counts as all networks.
    """
    if not spec.allowed_hosts and key_digests():
        return (ANY_HOST,)
    host = spec.host if isinstance(spec, ServeSpec) else ALL_NETWORKS[0]
    own = (ADDRESSES, socket.gethostname(), socket.getfqdn()) if host in ALL_NETWORKS else (host,)
    return tuple(dict.fromkeys((*LOOPBACK, *own, *spec.allowed_hosts)))


def allowed_origins(spec: AppSpec) -> tuple[str, ...]:
    return tuple(origin.rstrip("/") for origin in spec.cors_origins)


def prepare_environment(spec: AppSpec) -> dict[str, str]:
    """Leave only digests of API keys in this process's environment, and set there what Serve's proxies need, for a Ray
    that is started from here. Returns the variables for Serve on a cluster that was started before."""
    hide_keys()
    os.environ.setdefault(HOOK, HERE)
    os.environ[ORIGINS] = " ".join(allowed_origins(spec))
    return {name: os.environ[name] for name in (HOOK, ORIGINS, DIGESTS) if name in os.environ}

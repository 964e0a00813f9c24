"""The one place that calls `ray.init`: join a running cluster, or start Ray on this machine."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

# Ray's C++ side would write its warnings between our lines
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

import ray
from ray._common.utils import get_default_ray_temp_dir
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.autoscaler.v2.schema import ClusterStatus
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]

from tandem.errors import JobError, PlacementError
from tandem_cluster import PACKAGES
from tandem_cluster.health import watched
from tandem_cluster.joining import JOIN_TIMEOUT_S, check_answers, joined_in_time
from tandem_cluster.loopback import on_loopback
from tandem_cluster.nodes import ACCELERATOR_LABEL, RAY_JOB, Labels, Node

MIN_OBJECT_STORE_BYTES = 1 << 30
STATUS_TIMEOUT_S = 10
CODE_TIMEOUT_S = 30
ROOT = Path(__file__).parents[1]  # a folder that holds packages of ours alone, in a checkout
OBJECT_STORE_SHARE = 0.3  # of the memory, as Ray itself would take


@dataclass(frozen=True)
class Session:
    """What the cluster offers. Simulated GPUs are logical ids on a machine without any: pinning without speed."""

    num_nodes: int
    num_cpus: float
    num_gpus: int
    simulated: bool
    address: str
    object_store_bytes: int = 0
    can_grow: bool = False  # nodes may join

    def device_of(self, on_real_gpus: bool) -> bool | None:
        """Whether replicas are to insist on a GPU. None where GPUs are yet to come: they may be simulated."""
        return None if on_real_gpus and not self.num_gpus else on_real_gpus

    def describe(self) -> str:
        nodes = f"{self.num_nodes} node{'s' if self.num_nodes > 1 else ''}"
        gpus = f"{self.num_gpus} {'simulated ' if self.simulated else ''}GPU{'s' if self.num_gpus != 1 else ''}"
        return f"Ray on {nodes}: {self.num_cpus:g} CPUs, {gpus}"


@contextmanager
def open_session(
    address: str | None, logical_gpus: int, min_cpus: int, object_store_bytes: int = 0, loopback: bool = False
) -> Iterator[Session]:
    """Join the cluster at `address` (or RAY_ADDRESS), else start one here, stopped at the end.

    `logical_gpus` are offered by a local cluster on a machine without GPUs; `min_cpus` is the least number of
    logical CPUs it gets; its object store has `object_store_bytes` or as much of that as the memory allows. With
    `loopback` it listens there alone (`on_loopback`).
    A session that is already open in this process is used as it is. The process ends with exit code 1 and a line
    once Ray is gone.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    check_address(address)
    if ray.is_initialized():
        yield describe_cluster(address or "in this process", address is not None)
        return
    # a failed run is reported in one line by whoever runs it; Ray Data keeps the traces in its own log files
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    try:
        if address:
            check_answers(address)
        in_time = joined_in_time(address) if address else nullcontext()
        with in_time, without_log_level_line(), our_code_first():
            if address:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            else:
                with on_loopback() if loopback else nullcontext():
                    start_local(logical_gpus, min_cpus, object_store_bytes)
    except ConnectionError as error:
        raise PlacementError(
            f"no Ray cluster answers at {address}", "start one with: ray start --head, or drop --address"
        ) from error
    except PlacementError:
        raise
    except Exception as error:  # Ray raises bare exceptions when one of its processes does not come up
        raise why_not_started(error) from error
    try:
        if address and RAY_JOB not in os.environ:  # the code of a submitted job travels with it
            check_code()
        with watched():
            yield describe_cluster(address or "local", address is not None)
    finally:
        ray.shutdown()


def about_to_open(address: str | None) -> str:
    """What `open_session` is going to do, which takes seconds."""
    address = address or os.environ.get("RAY_ADDRESS")
    check_address(address)
    if ray.is_initialized():
        return "Ray runs in this process"
    if address:
        return f"joining the Ray cluster at {address}, tried for up to {JOIN_TIMEOUT_S} s"
    return "starting Ray on this machine"


def check_address(address: str | None) -> None:
    """Raise PlacementError for an address that is not that of a cluster to join: none, or of one to send a job to."""
    if address and "://" in address:
        host = address.partition("://")[2].partition(":")[0]
        dashboard = address if address.startswith("http") else f"http://{host}:8265"
        raise PlacementError(
            f"--address: expected auto or HOST:PORT of a Ray cluster that this machine is part of, got {address}",
            f"tandem submit --address {dashboard} -- COMMAND runs it there",
        )
    host, _, port = (address or "").rpartition(":")
    if address not in (None, "", "auto", "local") and not (host and port.isdecimal() and int(port) < 2**16):
        raise PlacementError(
            f"--address: expected auto or HOST:PORT of a Ray cluster that this machine is part of, got {address}",
            "the port is that of ray start --head, 6379 unless it was given another",
        )


def why_not_started(error: Exception) -> Exception:
    """What to say where Ray did not start on this machine."""
    folder = get_default_ray_temp_dir()
    cause = " ".join(str(error).split())
    if "AF_UNIX path length" in cause:
        return PlacementError(
            f"Ray did not start: expected a short folder for its sockets, got one of {len(folder)} letters: {folder}",
            "set RAY_TMPDIR to a short one, such as /tmp",
        )
    return JobError(f"Ray did not start: {cause}", f"its logs are in {folder}/session_latest/logs")


@contextmanager
def our_code_first() -> Iterator[None]:
    """A context in which `ray.init` tells workers to import from where this code is.

    Ray puts the current folder of the driver first on the path of workers: there a file of the user that is called
    tandem.py would be imported, and run, in place of ours.
    """
    try:
        kept = os.open(".", os.O_RDONLY)
    except FileNotFoundError:  # the folder was removed under this process
        kept = os.open("/", os.O_RDONLY)
    os.chdir(ROOT)
    try:
        yield
    finally:
        os.fchdir(kept)
        os.close(kept)


def check_code(names: Sequence[str] = PACKAGES) -> None:
    """Raise PlacementError where a node of the cluster lacks our code. Asks whichever node answers first."""

    def missing() -> list[str]:  # within a function, so that it travels as code: nodes may lack this module
        import importlib.util

        return [name for name in names if importlib.util.find_spec(name) is None]

    with suppress(ray.exceptions.GetTimeoutError):
        task = ray.remote(missing).options(num_cpus=0, max_retries=0).remote()
        if lacking := ray.get(task, timeout=CODE_TIMEOUT_S):
            raise PlacementError(
                f"expected the code of tandem on the nodes of the cluster, got none ({', '.join(lacking)})",
                "tandem submit --address http://HOST:8265 -- COMMAND sends it along",
            )


@contextmanager
def without_log_level_line() -> Iterator[None]:
    """Ray's C++ side reports that it has read RAY_BACKEND_LOG_LEVEL; whatever else it writes passes."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            for line in file:
                if b"Set ray log level from environment" not in line:
                    os.write(2, line)


def start_local(logical_gpus: int, min_cpus: int, object_store_bytes: int) -> None:
    real_gpus = count_real_gpus()
    most = int(OBJECT_STORE_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, min_cpus),
        num_gpus=real_gpus or logical_gpus,
        object_store_memory=max(MIN_OBJECT_STORE_BYTES, min(object_store_bytes, most)),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def count_real_gpus() -> int:
    """GPUs of this machine that torch can use."""
    import torch

    return torch.cuda.device_count()


def describe_cluster(address: str, can_grow: bool = False) -> Session:
    resources = ray.cluster_resources()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    num_gpus = int(resources.get("GPU", 0))
    # a node whose GPUs are real has an accelerator type among its resources
    typed = any(name.startswith("accelerator_type:") for name in resources)
    store = int(resources.get("object_store_memory", 0))
    return Session(len(nodes), resources.get("CPU", 0), num_gpus, num_gpus > 0 and not typed, address, store, can_grow)


def cluster_status() -> ClusterStatus:
    return get_cluster_status(ray.get_runtime_context().gcs_address)


def living_nodes(status: ClusterStatus | None = None) -> list[Node]:
    """All nodes that answer."""
    status = status or cluster_status()
    nodes = []
    for info in (*status.active_nodes, *status.idle_nodes):
        usage = info.resource_usage.usage if info.resource_usage else []
        total, used = next(((u.total, u.used) for u in usage if u.resource_name == "GPU"), (0, 0))
        labels = dict(info.labels or {})
        typed = (u.resource_name.partition("accelerator_type:")[2] for u in usage)
        if name := next(filter(None, typed), ""):
            labels.setdefault(ACCELERATOR_LABEL, name)
        nodes.append(Node(str(info.node_id), int(total), int(total - used), labels))
    return nodes


def num_unplaced() -> int:
    """Actors and tasks that wait for a GPU on some node."""
    bundles = (b for demand in cluster_status().resource_demands.ray_task_actor_demand for b in demand.bundles_by_count)
    return sum(b.count for b in bundles if b.bundle.get("GPU"))


def why_unplaced(what: str, wanted: Sequence[Labels]) -> str:
    """One line: which nodes would do, and what they have. Any of `wanted` will do; none: any node."""
    status = cluster_status()
    nodes = [node for node in living_nodes(status) if not wanted or any(node.matches(labels) for labels in wanted)]
    names = sorted({f"{name}={value}" for labels in wanted for name, value in labels.items()})
    labels = f" of {', '.join(names)}" if names else ""
    gpus, free = sum(n.gpus for n in nodes), sum(n.gpus_free for n in nodes)
    there = f"{len(nodes)} node{'s' * (len(nodes) != 1)}{labels} with {gpus} GPUs, {free} of them free"
    starting = sum(launch.count for launch in status.pending_launches) + len(status.pending_nodes)
    coming = f"; nodes that are starting: {starting}" if starting else ""
    if not coming and is_refused(wanted):
        coming = "; the autoscaler says that it can add none"
    return f"{what}: each needs a GPU, and there are {there}{coming}"


def is_refused(wanted: Sequence[Labels]) -> bool:
    """Whether the autoscaler has no node type left for a GPU on such a node. False where there is no autoscaler v2."""
    reply = GetClusterStatusReply()
    address = ray.get_runtime_context().gcs_address
    reply.ParseFromString(GcsClient(address).get_cluster_status(timeout_s=STATUS_TIMEOUT_S))
    refused = [
        {c.label_key: set(c.label_values) for selector in request.label_selectors for c in selector.label_constraints}
        for request in reply.autoscaling_state.infeasible_resource_requests
        if request.resources_bundle.get("GPU")
    ]
    return any({name: {value} for name, value in labels.items()} in refused for labels in wanted or [{}])

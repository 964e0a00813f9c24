"""The Ray Serve application: ingress -> drafters -> refiners, where each deployment calls the next one's handle; or
ingress -> replicas that hold both models."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayTaskError
from ray.serve import Application, Deployment
from ray.serve.config import BackpressureConfig
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from tandem_workers.endpoint.api import create_api
from tandem_workers.endpoint.endpoint_metrics import RequestMetrics
from tandem_workers.endpoint.gateway import Gateway, GatewaySettings, Watcher
from tandem_workers.endpoint.replica_watch import RayReplicas, ReplicaWatch
from tandem_workers.endpoint.replicas import ColocatedReplica, DraftReplica, RefineReplica, ReplicaSettings
from tandem_workers.endpoint.retries import LOST, ask, ask_stream
from tandem_workers.requests.api_errors import ApiError
from tandem_workers.requests.api_schema import About
from tandem_workers.requests.messages import ImageRequest, Pictures, Preview
from tandem_workers.storage.store import Store

INGRESS = "Ingress"
UNAVAILABLE = (*LOST, DeploymentUnavailableError)
UPSCALE_DELAY_S = 5.0  # overload lasts this long before a replica is added
# Requests that a replica may hold, per row of a batch: one in progress and the rest to form the next batch from; twice
# as many for a drafter, to keep the refiners behind it busy as well
QUEUE_PER_ROW, QUEUE_PER_TARGET = 4, 2
# Besides admitted image requests, an ingress handles this many others and refusals at a time, and as many may wait.
# Beyond that the proxy refuses requests, at a fraction of the cost.
OTHER_REQUESTS = 16
HEALTH_CHECK_S = 2.0


@dataclass(frozen=True)
class Publisher:
    """Stores image files under the hash of their bytes, and returns links that expire."""

    store: Store
    seconds: int

    def __call__(self, extension: str, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        path = f"served/{digest[:2]}/{digest}.{extension}"
        self.store.put_once(path, data)
        return self.store.presign(path, self.seconds)


class ServeEngine:
    """Calls drafters by their handle, and turns Ray's errors into errors of the API."""

    def __init__(self, drafter: DeploymentHandle[Any], watch: ReplicaWatch | None = None):
        self.drafter, self.watch = drafter, watch

    async def generate(self, request: ImageRequest) -> Pictures:
        with as_answers():
            pictures: Pictures = await ask(partial(self.drafter.generate.remote, request))
            return pictures

    async def stream(self, request: ImageRequest) -> AsyncGenerator[Preview | Pictures, None]:
        call = partial(self.drafter.options(stream=True).stream.remote, request)
        with as_answers():
            async with aclosing(ask_stream(call)) as events:
                async for event in events:
                    yield event

    async def ready(self) -> bool:
        try:
            return bool(await ask(self.drafter.ready.remote))
        except UNAVAILABLE:
            return False

    def missing(self) -> str:
        """What keeps it from making images, in words; empty: nothing that is known."""
        return self.watch.missing() if self.watch else ""


@contextmanager
def as_answers() -> Iterator[None]:
    """Context manager: lost replicas raise ApiError 503; an error in a replica is raised as its original type."""
    try:
        yield
    except (RayTaskError, *UNAVAILABLE) as error:
        cause = origin(error)
        if isinstance(cause, UNAVAILABLE):
            message = "the replicas that had the request were lost, or there are none"
            raise ApiError(503, message, code="replicas_lost", retry_after_s=5) from error
        raise cause from None


def origin(error: BaseException) -> BaseException:
    """The original error: Ray wraps it once for each call that it passes through."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error


@serve.ingress()
class Ingress:
    """The HTTP API on a replica. Holds no model."""

    def __init__(
        self, drafter: DeploymentHandle[Any], about: About, settings: GatewaySettings, stages: Sequence[str] = ()
    ):
        """`stages` are the deployments whose replicas are watched."""
        metrics = RequestMetrics()
        watcher = Watcher(
            answered=lambda path, status: metrics.requests.inc(1, {"endpoint": path, "status": str(status)}),
            took=metrics.seconds.observe,
            first_preview=metrics.first.observe,
            in_flight=metrics.in_flight.set,
        )
        replicas = RayReplicas(serve.get_replica_context().app_name)
        self.watch = ReplicaWatch(replicas, stages, lambda stage: metrics.given_up.inc(1, {"stage": stage.lower()}))
        self.watching = asyncio.get_running_loop().create_task(self.watch.run())
        self.gateway = Gateway(ServeEngine(drafter, self.watch), about, settings, watcher)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(self.gateway, proxied=True)

    def drain(self) -> int:
        """Stop accepting image requests. Returns the number in flight."""
        self.gateway.admission.draining = True
        return self.gateway.admission.in_flight

    def notices(self) -> dict[str, str]:
        """What happened to replicas, for the terminal; keys are the same on all ingresses."""
        return self.watch.notices


@dataclass(frozen=True)
class ReplicaRange:
    """Number of replicas of one deployment, and the resources that each requests from Ray.

    With `least` < `most` Ray Serve scales by ongoing requests: one replica for each `target_requests`.
    `nodes`: Ray labels of the nodes to run on; empty: any node.
    """

    least: int
    most: int
    num_cpus: float
    num_gpus: float
    target_requests: float
    nodes: Mapping[str, str] = field(default_factory=dict)

    def anywhere(self) -> ReplicaRange:
        """The same replicas without a request for a device or node."""
        return replace(self, num_cpus=0.0, num_gpus=0.0, nodes={})

    def options(self, batch: int) -> dict[str, Any]:
        """Options of a Ray Serve deployment."""
        asked: dict[str, Any] = {
            "ray_actor_options": {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus},
            "max_ongoing_requests": max(QUEUE_PER_ROW * batch, round(QUEUE_PER_TARGET * self.target_requests)),
        }
        if self.nodes:
            asked["ray_actor_options"]["label_selector"] = dict(self.nodes)
        if self.least == self.most:
            return asked | {"num_replicas": self.most}
        scaling = {
            "min_replicas": self.least,
            "max_replicas": self.most,
            "target_ongoing_requests": self.target_requests,
            "upscale_delay_s": UPSCALE_DELAY_S,
        }
        return asked | {"autoscaling_config": scaling}


@dataclass(frozen=True)
class Parts:
    """Constructor arguments of the deployments. Models are loaded on the replicas."""

    draft: Callable[[], Any]
    refine: Callable[[], Any]
    encode: Callable[..., bytes]


def build_app(
    parts: Parts,
    about: About,
    gateway: GatewaySettings,
    replica: ReplicaSettings,
    drafters: ReplicaRange,
    refiners: ReplicaRange | None,
    ingresses: int = 1,
) -> Application:
    """Bind the deployments to each other. Without `refiners`, each drafter has one in its own process."""
    patience = {"graceful_shutdown_timeout_s": gateway.timeout_s, "graceful_shutdown_wait_loop_s": 0.5}
    patience |= {"health_check_period_s": HEALTH_CHECK_S}  # a replica that died is noticed then
    usual = patience | {"health_check_timeout_s": 30}
    ingress = deployment(
        Ingress,
        name=INGRESS,
        num_replicas=ingresses,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=gateway.max_requests + OTHER_REQUESTS,
        max_queued_requests=gateway.max_requests + OTHER_REQUESTS,  # all of them may arrive at once
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=5),
        **patience | {"health_check_timeout_s": 10},
    )
    stages: tuple[str, ...] = ("Colocated",)
    if refiners is None:
        both = deployment(ColocatedReplica, name=stages[0], **drafters.options(replica.batch), **usual)
        drafter = both.bind(parts.draft, parts.refine, parts.encode, replica)
    else:
        stages = "Drafter", "Refiner"
        refine = deployment(RefineReplica, name="Refiner", **refiners.options(replica.batch), **usual)
        draft = deployment(DraftReplica, name="Drafter", **drafters.options(replica.batch), **usual)
        refiner = refine.bind(parts.refine, parts.encode, replica)
        drafter = draft.bind(parts.draft, parts.encode, replica, refiner)
    return ingress.bind(drafter, about, replace(gateway, batch=replica.batch), stages)


def deployment(kind: type, **options: Any) -> Deployment:
    return cast("Deployment", serve.deployment(kind, **options))

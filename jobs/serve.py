"""`tandem serve`: the models behind HTTP, on Ray Serve; and `app`, the same for `serve run` and config files."""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from ray.serve import Application

from cluster.nodes import parse_labels
from cluster.plan import Placement
from cluster.server import LOOPBACK, deployed, drain, find_port, metrics_addresses, signals
from cluster.session import Session, describe_cluster, open_session
from jobs.flags import COMMAS
from jobs.options import DecodingOptions
from jobs.progress import say
from jobs.running import software
from jobs.serve_placement import check_pairs, choose_placement, scales
from jobs.settings import (
    check_gpus_here,
    check_preparation,
    choose_draft_steps,
    choose_dtype,
    choose_preparation,
    choose_sampling,
)
from jobs.spec import check
from tandem.errors import InputError
from tandem.images import Provenance
from workers.api_models import About
from workers.decoding import DraftWork, RefineWork
from workers.endpoint import INGRESS, Parts, Publisher, build_app
from workers.endpoint_types import ImageRequest
from workers.gateway import GatewaySettings
from workers.guard import digest
from workers.models import ModelSet, resolve_models
from workers.replicas import FileEncoder, ReplicaSettings
from workers.s3_address import split_prefix
from workers.store import open_store

APP = "tandem"
QUEUED_BATCHES = 2.5  # of requests for every replica: one under way, one to choose from, and some on their way
QUEUED_IMAGES = 8  # of a request in flight, on average
KEYS = "TANDEM_API_KEYS"
MIN_KEY = 16  # characters: only digests of keys leave this process, and short keys could be found from them

EXAMPLES = """examples:
  tandem serve                                   then open http://127.0.0.1:8000/
  tandem serve --drafters 2 --refiners 1 --placement split --port 9000
  tandem serve --drafter var_d30.pth --refiner var_d16.pth --vqvae vae_ch160v4096z32.pth --batch 32
  TANDEM_API_KEYS=... tandem serve --host 0.0.0.0 --store s3://bucket/served

  curl -s http://127.0.0.1:8000/v1/images/generations -H 'Content-Type: application/json' \\
      -d '{"prompt": "face", "seed": 1}'

Clients written for the OpenAI images API work with the base address http://127.0.0.1:8000/v1. Ctrl-C and SIGTERM let
running requests finish. API keys come from the environment alone: TANDEM_API_KEYS, separated by commas."""


class AppSpec(DecodingOptions):
    """What the application is: models, batches, limits. Also the `args` of a Ray Serve config file."""

    drafter: str = Field(
        "embedded", description="'embedded', a file, an address (hf://, https://, s3://), or a name (tandem models)"
    )
    refiner: str = Field("embedded", description="like --drafter; the smaller model")
    model_id: str = Field("", description="what clients call the pair; default: tandem-embedded, or from its files")
    batch: PositiveInt = Field(8, description="most images of one forward, and the size of deterministic ones")
    batch_wait_ms: float = Field(
        5.0, ge=0, le=1000, description="so long an incomplete batch waits for company; up to 6 x under load"
    )
    placement: Literal["auto", "split", "colocated", "cpu"] = Field(
        "auto",
        description="split: a GPU each; colocated: both models on each GPU; cpu; auto: colocated on all GPUs, split "
        "where numbers are given",
    )
    drafters: PositiveInt | None = Field(None, description="drafter replicas; the most with --autoscale")
    refiners: PositiveInt | None = Field(None, description="refiner replicas; the most with --autoscale")
    drafters_on: Annotated[str | None, COMMAS] = Field(
        None,
        description="Ray labels of the nodes for drafters, with --placement split or colocated and both numbers; "
        "nodes that are not there yet are waited for",
    )
    refiners_on: Annotated[str | None, COMMAS] = Field(
        None, description="the same for refiners; both or neither, and equal if colocated"
    )
    ingresses: PositiveInt = Field(1, description="replicas of the HTTP API; each has its own queue")
    autoscale: bool = Field(False, description="start with one replica of each and let Ray Serve follow the load")
    profile: tuple[str, ...] | None = Field(
        None, description="profile of each kind of GPU: the planner says how many draft and how many refine"
    )
    max_requests: PositiveInt | None = Field(
        None,
        description="requests in flight of one ingress; more are answered 429; default: 2.5 x --batch a replica",
    )
    max_images: PositiveInt | None = Field(None, description="the same for their images; default: 8 x --max-requests")
    max_n: PositiveInt = Field(10, description="images of one request")
    timeout_s: PositiveFloat = Field(120.0, description="time limit of a request, then 503")
    store: str | None = Field(None, description="s3://bucket/prefix for response_format url")
    url_seconds: PositiveInt = Field(3600, le=7 * 24 * 3600, description="how long such a link is good")
    cors_origins: tuple[str, ...] = Field((), description="other sites whose pages may call: https://a.example")

    @model_validator(mode="after")
    def check_together(self) -> AppSpec:
        if self.profile and (self.placement == "cpu" or self.drafters or self.refiners):
            raise ValueError("expected --profile without --placement cpu, --drafters and --refiners")
        if (self.drafters_on is None) != (self.refiners_on is None):
            raise ValueError("expected --drafters-on and --refiners-on together, got one of them")
        if self.drafters_on and self.refiners_on:
            parse_labels("--drafters-on", self.drafters_on)
            parse_labels("--refiners-on", self.refiners_on)
            if self.placement not in ("split", "colocated") or not (self.drafters and self.refiners):
                expected = "--placement split or colocated, --drafters and --refiners"
                raise ValueError(f"expected {expected} beside --drafters-on")
            if self.placement == "colocated":
                check_pairs(self)
        if self.max_images is not None and self.max_n > self.max_images:
            raise ValueError(f"expected --max-n of at most --max-images {self.max_images}, got {self.max_n}")
        if self.store is not None:
            split_prefix(self.store, "--store")
        return self


class ServeSpec(AppSpec):
    """Serve images over HTTP: drafters and refiners on Ray Serve behind the OpenAI images API, and a page."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 is every network")
    port: int = Field(8000, ge=0, le=65535, description="0 takes a free one")
    access_log: bool = Field(False, description="log every request, in Ray's files")
    logical_gpus: NonNegativeInt = Field(4, description="simulated GPUs offered where the machine has none")
    address: str | None = Field(None, description="Ray cluster to join (also RAY_ADDRESS); default: start Ray here")


def app(args: dict[str, Any]) -> Application:
    """For `serve run jobs.serve:app` and config files; `args` are the options of `tandem serve` that say what it is.

    Raises InputError with one line for every wrong value.
    """
    spec = check(AppSpec, args, "tandem serve --help shows every option")
    return make_app(spec, describe_cluster("this"))[0]


def make_app(spec: AppSpec, session: Session, parts: Parts | None = None) -> tuple[Application, Placement, About]:
    """Check everything, choose the placement, and bind the deployments, of other parts if some are given."""
    models = resolve_models(spec.drafter, spec.refiner, spec.vqvae, spec.random_weights, spec.class_names)
    check_preparation(spec, {"drafter": models.drafter_config, "refiner": models.refiner_config})
    about = describe(spec, models)
    publish = None
    if spec.store is not None:
        store = open_store(spec.store)
        store.check()
        publish = Publisher(store, spec.url_seconds)
    placement = choose_placement(spec, session, about.draft_steps)
    replicas = placement.num_drafters + placement.num_refiners
    max_requests = spec.max_requests or round(QUEUED_BATCHES * spec.batch * replicas)
    gateway = GatewaySettings(
        max_requests=max_requests,
        max_images=spec.max_images or max(spec.max_n, QUEUED_IMAGES * max_requests),
        max_n=spec.max_n,
        timeout_s=spec.timeout_s,
        key_digests=tuple(map(digest, api_keys())),
        origins=tuple(origin.rstrip("/") for origin in spec.cors_origins),
        publish=publish,
    )
    on_real_gpus = placement.mode != "cpu" and not session.simulated
    dtype, on_gpu = choose_dtype(spec.dtype, on_real_gpus), session.device_of(on_real_gpus)
    how = choose_preparation(spec, on_real_gpus)
    for sentence in how.in_vain(torch.device("cuda" if on_real_gpus else "cpu")):
        say(f"warning: {sentence}")
    warm_up = ImageRequest(0, 0, 1, about.draft_steps, about.sampling)
    sha256 = models.hashes
    provenance = Provenance(software(), sha256["drafter"], sha256["refiner"], sha256["vqvae"], 0, about.draft_steps)
    real = Parts(
        partial(DraftWork, models, dtype, spec.threads, how, on_gpu),
        partial(RefineWork, models, dtype, spec.threads, how, on_gpu),
        FileEncoder(provenance, about.class_names.names),
    )
    warm_prefix = models.drafter_config.pyramid.offsets[about.draft_steps]
    replica = ReplicaSettings(spec.batch, spec.batch_wait_ms / 1000, warm_up, warm_prefix, on_real_gpus)
    drafters, refiners = scales(spec, placement)
    if parts is not None:  # they ask for nothing, and stand beside the real ones
        drafters, refiners = drafters.anywhere(), refiners and refiners.anywhere()
    bound = build_app(parts or real, about, gateway, replica, drafters, refiners, spec.ingresses)
    return bound, placement, about


def describe(spec: AppSpec, models: ModelSet) -> About:
    """What the API tells of the models."""
    draft_steps = choose_draft_steps(spec.draft_steps, models.drafter_config.pyramid)
    embedded = spec.drafter == spec.refiner == "embedded"
    name = "tandem-embedded" if embedded else f"tandem-{Path(spec.drafter).stem}-{Path(spec.refiner).stem}"
    return About(
        model_id=spec.model_id or name,
        image_size=models.image_size,
        patch_nums=models.drafter_config.patch_nums,
        vocab_size=models.drafter_config.vocab_size,
        class_names=models.class_names,
        draft_steps=draft_steps,
        sampling=choose_sampling(spec, models.sampling),
        created=int(time.time()),
        sha256=models.hashes,
    )


def api_keys() -> list[str]:
    """From the environment. InputError for keys that could be guessed, and for a variable that holds none: who sets
    it wants a closed door."""
    if KEYS not in os.environ:
        return []
    keys = [key.strip() for key in os.environ[KEYS].split(",") if key.strip()]
    if not keys:
        raise InputError(f"{KEYS}: expected keys separated by commas, got none", "unset it to serve without keys")
    for key in keys:
        if len(key) < MIN_KEY or not (key.isascii() and key.isprintable()):
            got = f"one of {len(key)}" if key.isascii() else "one with others"
            raise InputError(f"{KEYS}: expected keys of {MIN_KEY} ASCII characters or more, got {got}")
    return keys


def choose_port(spec: ServeSpec) -> int:
    """The port asked for, or a free one. On a cluster that is joined the proxies need not be on this machine."""
    if not (spec.address or os.environ.get("RAY_ADDRESS")):
        return find_port(spec.host, spec.port)
    if not spec.port:
        raise InputError("--port: expected a number on a cluster that is joined, got 0")
    return spec.port


def url_of(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(spec: ServeSpec) -> None:
    """Serve until ctrl-C or SIGTERM, then let running requests finish."""
    if spec.host not in LOOPBACK and not api_keys():
        say(f"warning: {spec.host} can be reached from other machines, and no {KEYS} are set")
    check_gpus_here(spec, spec.address, spec.placement == "cpu")
    port = choose_port(spec)
    replicas = (spec.drafters or 1) + (spec.refiners or 1)
    with open_session(spec.address, spec.logical_gpus, 2 + replicas * spec.threads) as session, signals() as told:
        began = time.monotonic()
        bound, placement, about = make_app(spec, session)
        say(session.describe())
        say(placement.describe())
        say(f"{about.model_id}: {about.size} px, {len(about.class_names)} classes, N = {about.draft_steps}; loading")
        with deployed(bound, APP, spec.host, port, spec.access_log, tell=say):
            told.serving = True
            say(f"loaded in {time.monotonic() - began:.0f} s; metrics for Prometheus: {' '.join(metrics_addresses())}")
            say(f"serving {url_of(spec.host, port)}/ and the API below /v1; ctrl-C lets running requests finish")
            told.wait()
            say("draining: running requests finish, new ones are refused")
            drain(APP, INGRESS, spec.timeout_s)
    say("stopped")


if __name__ == "__main__":
    from jobs.cli import main

    sys.argv[1:1] = ["serve"]
    sys.exit(main())

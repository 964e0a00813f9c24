"""`tandem serve`: images over HTTP, on Ray Serve; and `app`, the same for `serve run` and config files."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ray.serve import Application

from tandem.errors import InputError
from tandem.images import Provenance
from tandem_cluster.placement import Placement
from tandem_cluster.ray_version import check_ray
from tandem_cluster.serve_states import states_logged
from tandem_cluster.server import LOOPBACK, deployed, drain, find_port, metrics_addresses, signals
from tandem_cluster.session import Session, describe_cluster, open_session
from tandem_jobs.options.flags import as_flag
from tandem_jobs.options.spec import check
from tandem_jobs.run.decode_choices import (
    check_gpus_here,
    check_preparation,
    check_tuned,
    choose_draft_steps,
    choose_dtype,
    choose_preparation,
    choose_sampling,
    warn_if_unsuited,
)
from tandem_jobs.run.progress import say
from tandem_jobs.run.versions import software
from tandem_jobs.serve_access import allowed_hosts, allowed_origins, prepare_environment
from tandem_jobs.serve_options import AppSpec, ServeSpec
from tandem_jobs.serve_placement import choose_placement, replica_ranges
from tandem_workers.endpoint.app import INGRESS, Parts, Publisher, build_app
from tandem_workers.endpoint.decoding import DraftDecoder, RefineDecoder
from tandem_workers.endpoint.gateway import GatewaySettings
from tandem_workers.endpoint.keys import KEYS, key_digests
from tandem_workers.endpoint.replicas import FileEncoder, ReplicaSettings
from tandem_workers.models.model_set import ModelSet, resolve_models
from tandem_workers.requests.api_schema import About
from tandem_workers.requests.messages import ImageRequest
from tandem_workers.requests.request_check import check_defaults
from tandem_workers.storage.places import open_store

APP = "tandem"
QUEUED_BATCHES = 2.5  # batches of requests per replica: one in work, one queued, and some in transit
QUEUED_IMAGES = 8  # average images of a request in flight

EXAMPLES = """examples:
  tandem serve                                   then open http://127.0.0.1:8000/
  tandem serve --drafters 2 --refiners 1 --placement split --port 9000
  tandem serve --drafter var_d30.pth --refiner var_d16.pth --vqvae vae_ch160v4096z32.pth --batch 32
  TANDEM_API_KEYS=... tandem serve --host 0.0.0.0 --store s3://bucket/served
  tandem serve --lenient                         for Open WebUI, LangChain and others that ask for sizes and prompts

  curl -s http://127.0.0.1:8000/v1/images/generations -H 'Content-Type: application/json' \\
      -d '{"prompt": "face", "seed": 1}'

Clients written for the OpenAI images API work with the base address http://127.0.0.1:8000/v1. Ctrl-C and SIGTERM let
running requests finish. API keys come from the environment alone: TANDEM_API_KEYS, separated by commas."""


def app(args: dict[str, Any]) -> Application:
    """For `serve run tandem_jobs.serve:app` and config files; `args` are the options of AppSpec.

    Raises InputError with one line for every wrong value, and for a Ray of another minor version.
    """
    check_ray()
    spec = check(AppSpec, args, "tandem serve --help shows every option")
    return make_app(spec, describe_cluster("this"))[0]


def make_app(spec: AppSpec, session: Session, parts: Parts | None = None) -> tuple[Application, Placement, About]:
    """Check everything, choose the placement, and bind the deployments; `parts` replaces their contents."""
    models = resolve_models(spec.drafter, spec.refiner, spec.vqvae, spec.random_weights, spec.class_names)
    check_tuned(spec, models)
    check_preparation(spec, {"drafter": models.drafter_config, "refiner": models.refiner_config})
    about = describe(spec, models)
    with as_flag():
        check_defaults(about)
    warn_if_unsuited(models, (about.draft_steps,), [about.sampling])
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
        key_digests=key_digests(),
        origins=allowed_origins(spec),
        allowed_hosts=allowed_hosts(spec),
        lenient=spec.lenient,
        publish=publish,
        link_seconds=spec.url_seconds,
        public_url=spec.public_url,
    )
    on_real_gpus = placement.mode != "cpu" and not session.simulated
    dtype, on_gpu = choose_dtype(spec.dtype, on_real_gpus), session.device_of(on_real_gpus)
    preparation = choose_preparation(spec, on_real_gpus, dtype)
    for sentence in preparation.unavailable(torch.device("cuda" if on_real_gpus else "cpu")):
        say(f"warning: {sentence}")
    warm_up = ImageRequest(0, 0, 1, about.draft_steps, about.sampling)
    sha256 = models.hashes
    provenance = Provenance(software(), sha256["drafter"], sha256["refiner"], sha256["vqvae"], 0, about.draft_steps)
    real = Parts(
        partial(DraftDecoder, models, dtype, spec.threads, preparation, on_gpu),
        partial(RefineDecoder, models, dtype, spec.threads, preparation, on_gpu),
        FileEncoder(provenance, about.class_names.with_none().names),
    )
    warm_prefix = models.drafter_config.pyramid.offsets[about.draft_steps]
    replica = ReplicaSettings(spec.batch, spec.batch_wait_ms / 1000, warm_up, warm_prefix, on_real_gpus)
    drafters, refiners = replica_ranges(spec, placement)
    if parts is not None:  # these request no resources and run next to the real ones
        drafters, refiners = drafters.anywhere(), refiners and refiners.anywhere()
    bound = build_app(parts or real, about, gateway, replica, drafters, refiners, spec.ingresses)
    return bound, placement, about


def describe(spec: AppSpec, models: ModelSet) -> About:
    """The facts about the models for the API. What has no effect is left out of the sampling, as requests have to:
    temperatures beyond the last scale, and codes beyond the vocabulary."""
    pyramid, vocab_size = models.drafter_config.pyramid, models.drafter_config.vocab_size
    sampling = choose_sampling(spec, models.sampling, pyramid)
    temperatures = sampling.temperatures[: pyramid.num_scales]
    draft_steps = choose_draft_steps(spec.draft_steps, models)
    embedded = spec.drafter == spec.refiner == "embedded"
    name = "tandem-embedded" if embedded else f"tandem-{Path(spec.drafter).stem}-{Path(spec.refiner).stem}"
    return About(
        model_id=spec.model_id or name,
        image_size=models.image_size,
        patch_nums=pyramid.patch_nums,
        vocab_size=vocab_size,
        class_names=models.class_names,
        draft_steps=draft_steps,
        sampling=replace(sampling, top_k=min(sampling.top_k, vocab_size), temperatures=temperatures),
        created=int(time.time()),
        sha256=models.hashes,
        fine_tuned=models.fine_tuned,
    )


def choose_port(spec: ServeSpec) -> int:
    """The requested port, or a free one. On a joined cluster it is not probed: the proxies may be on other machines."""
    if not (spec.address or os.environ.get("RAY_ADDRESS")):
        return find_port(spec.host, spec.port)
    if not spec.port:
        raise InputError("--port: expected a number above 0 on a joined cluster, got 0")
    return spec.port


def url_of(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(spec: ServeSpec) -> None:
    """Serve until ctrl-C or SIGTERM, then let running requests finish."""
    if spec.host not in LOOPBACK and not key_digests():
        say(f"warning: {spec.host} can be reached from other machines, and {KEYS} is not set")
    check_gpus_here(spec, spec.address, spec.placement == "cpu")
    port = choose_port(spec)
    variables = prepare_environment(spec)
    replicas = (spec.drafters or 1) + (spec.refiners or 1)
    min_cpus, loopback = 2 + replicas * spec.threads, spec.host in LOOPBACK
    with (
        open_session(spec.address, spec.logical_gpus, min_cpus, loopback=loopback) as session,
        signals() as stop,
    ):
        began = time.monotonic()
        bound, placement, about = make_app(spec, session)
        say(session.describe())
        say(placement.describe())
        say(f"{about.model_id}: {about.size} px, {len(about.class_names)} classes, N = {about.draft_steps}; loading")
        with deployed(bound, APP, spec.host, port, spec.access_log, log=say, variables=variables):
            stop.serving = True
            say(f"loaded in {time.monotonic() - began:.0f} s; metrics for Prometheus: {' '.join(metrics_addresses())}")
            say(f"serving {url_of(spec.host, port)}/ and the API below /v1; ctrl-C lets running requests finish")
            with states_logged(APP, INGRESS, say):
                stop.wait()
            say("draining: running requests finish, new ones are refused")
            drain(APP, INGRESS, spec.timeout_s)
    say("stopped")

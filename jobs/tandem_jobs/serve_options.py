"""Options of `tandem serve`: the application, and its address."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from tandem_cluster.nodes import parse_labels
from tandem_jobs.options.flags import COMMAS
from tandem_jobs.options.options import DecodingOptions, TunedOptions
from tandem_workers.storage.s3_address import split_prefix


class AppSpec(DecodingOptions, TunedOptions):
    """The application: models, batches, limits. Also the `args` of a Ray Serve config file."""

    drafter: str = Field(
        "embedded", description="'embedded', a file, an address (hf://, https://, s3://), or a name (tandem models)"
    )
    refiner: str = Field("embedded", description="like --drafter; the smaller model")
    model_id: str = Field("", description="model name for clients; default: tandem-embedded, or from the file names")
    batch: PositiveInt = Field(8, description="most images per forward; deterministic requests use this size")
    batch_wait_ms: float = Field(
        5.0, ge=0, le=1000, description="longest wait to fill a batch; up to 6 times longer under load"
    )
    placement: Literal["auto", "split", "colocated", "cpu"] = Field(
        "auto",
        description="split: drafters and refiners on separate GPUs; colocated: both models on each GPU; cpu: CPU "
        "processes; auto: colocated on all GPUs, split if numbers are given",
    )
    drafters: PositiveInt | None = Field(None, description="drafter replicas; the maximum with --autoscale")
    refiners: PositiveInt | None = Field(None, description="refiner replicas; the maximum with --autoscale")
    drafters_on: Annotated[str | None, COMMAS] = Field(
        None,
        description="Ray labels of the nodes for drafters, with --placement split or colocated and both numbers; "
        "waits for nodes that have not joined yet",
    )
    refiners_on: Annotated[str | None, COMMAS] = Field(
        None, description="the same for refiners; give both or neither, and the same if colocated"
    )
    ingresses: PositiveInt = Field(1, description="replicas of the HTTP API; each has its own queue")
    autoscale: bool = Field(False, description="start with one replica of each, and let Ray Serve scale with load")
    profile: tuple[str, ...] | None = Field(
        None, description="profiles, one for each kind of GPU, from which the planner chooses the numbers of replicas"
    )
    max_requests: PositiveInt | None = Field(
        None,
        description="most requests in flight per ingress; others get status 429; default: 2.5 x --batch per replica",
    )
    max_images: PositiveInt | None = Field(
        None, description="most images in flight per ingress; default: 8 x --max-requests"
    )
    max_n: PositiveInt = Field(10, description="most images per request")
    timeout_s: PositiveFloat = Field(120.0, description="time limit of a request in seconds, then status 503")
    lenient: bool = Field(
        False,
        description="also take requests as clients of other image servers send them: any size, model name and prompt "
        "that comes near to a class; answers say what was changed",
    )
    store: str | None = Field(
        None,
        description="s3://bucket/prefix for images of requests with response_format url; default: the server answers "
        "their links itself",
    )
    url_seconds: PositiveInt = Field(3600, le=7 * 24 * 3600, description="seconds until links to images expire")
    public_url: str = Field(
        "",
        description="address that links to images begin with, such as https://a.example/images; default: the one by "
        "which the client has asked",
    )
    cors_origins: tuple[str, ...] = Field((), description="other sites whose pages may call the API: https://a.example")
    allowed_hosts: tuple[str, ...] = Field(
        (),
        description="further names by which clients address the server: a.example, *.a.example, or '*' for any; "
        "default: any if keys are required, else localhost and --host (all networks: addresses and the machine's name)",
    )

    @field_validator("public_url")
    @classmethod
    def check_public_url(cls, url: str) -> str:
        """Without a final slash."""
        parts = urlsplit(url)
        if url and (parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment):
            raise ValueError("expected http://HOST or https://HOST, with or without a path")
        return url.rstrip("/")

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
                raise ValueError(f"expected {expected} with --drafters-on")
            if self.placement == "colocated":
                check_pairs(self)
        if self.max_images is not None and self.max_n > self.max_images:
            raise ValueError(f"expected --max-n of at most --max-images {self.max_images}, got {self.max_n}")
        if self.store is not None:
            split_prefix(self.store, "--store")
        return self


class ServeSpec(AppSpec):
    """Serve images over HTTP: drafters and refiners on Ray Serve behind the OpenAI images API, and a page."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0: all networks")
    port: int = Field(8000, ge=0, le=65535, description="port; 0: a free one")
    access_log: bool = Field(False, description="log every request, in Ray's log files")
    logical_gpus: NonNegativeInt = Field(4, description="simulated GPUs on a machine without any")
    address: str | None = Field(None, description="Ray cluster to join (also RAY_ADDRESS); default: start Ray here")


def check_pairs(spec: AppSpec) -> None:
    """Raises ValueError if colocated drafters and refiners differ in number or nodes."""
    if spec.drafters != spec.refiners:
        got = f"{spec.drafters} and {spec.refiners}"
        raise ValueError(f"colocated: expected as many drafters as refiners, got {got}")
    if spec.drafters_on != spec.refiners_on:
        got = f"{spec.drafters_on} and {spec.refiners_on}"
        raise ValueError(f"colocated: expected the same --drafters-on and --refiners-on, got {got}")

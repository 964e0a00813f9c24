"""Files for real clusters from one plan. Pure. All numbers come from the plan, so that the files agree."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from tandem.errors import InputError
from tandem_cluster.plan_file import Group, PlannedOption, Role, Spot, groups_of, role_selector

ROLES: tuple[Role, ...] = ("drafter", "refiner", "both")
RAY_VERSION = "2.60.0"
SERVE_PORT = 8000


@dataclass(frozen=True)
class RenderSettings:
    """Settings that a plan does not contain. Sizes are those of a node with one GPU."""

    image: str
    dataset: str | None
    images: int
    classes: str = "all"
    drafter: str = "embedded"
    refiner: str = "embedded"
    vqvae: str = "embedded"
    class_names: str | None = None
    name: str = "tandem"
    spot: Spot = "refiners"
    cpus: int = 8
    memory_gib: int = 32
    disk_gib: int = 100
    idle_minutes: int = 10
    release_refiners: bool = False
    autoscale: bool = False
    role_arn: str | None = None
    region: str = "us-west-2"
    instances: tuple[tuple[str, str, int], ...] = ()  # kind, EC2 instance type, its GPUs
    instance_profile: str | None = None
    head_instance_profile: str | None = None
    ami: str | None = None
    preparation: Mapping[str, bool | str] = field(
        default_factory=dict
    )  # options of computation, such as fold_adaln: True
    min_drafters: int | None = None
    max_drafters: int | None = None
    min_refiners: int | None = None
    max_refiners: int | None = None
    namespace: str | None = None
    object_labels: tuple[tuple[str, str], ...] = ()
    image_pull_secrets: tuple[str, ...] = ()
    priority_class: str | None = None
    env: tuple[tuple[str, str], ...] = ()
    serve_env: tuple[tuple[str, str], ...] = ()  # of the endpoint's pods alone
    env_from_secret: tuple[str, ...] = ()
    suspend: bool = False
    deadline_s: int | None = None
    gcs_redis: str | None = None
    gcs_redis_secret: str | None = None
    pod_monitor: bool = False
    disruption_budgets: bool = False
    ingress_host: str | None = None
    ingress_class: str | None = None
    ingress_tls_secret: str | None = None

    @property
    def models(self) -> dict[str, str]:
        """Options that choose the models, by name."""
        named = {} if self.class_names is None else {"class_names": self.class_names}
        return {"drafter": self.drafter, "refiner": self.refiner, "vqvae": self.vqvae, **named}

    def range_of(self, role: Role) -> tuple[int | None, int | None] | None:
        """(least, most) nodes of an elastic role, where None is the plan's number; None if the role is not elastic."""
        ranges: dict[Role, tuple[int | None, int | None]] = {
            "drafter": (self.min_drafters, self.max_drafters),
            "refiner": (self.min_refiners, self.max_refiners),
            "both": (None, None),
        }
        return None if ranges[role] == (None, None) else ranges[role]


@dataclass(frozen=True)
class NodePool:
    """Nodes of a group: between `least` and `most`."""

    group: Group
    least: int
    most: int


@dataclass(frozen=True)
class Deployment:
    """A plan's option and the settings, from which every file is made."""

    option: PlannedOption
    settings: RenderSettings
    decoding: Mapping[str, Any] = field(default_factory=dict)  # the plan's settings of N, of tandem tune

    @property
    def options(self) -> dict[str, Any]:
        """How tokens are decoded, beside N; what was asked for now wins."""
        return {k: v for k, v in self.decoding.items() if k != "draft_steps"} | dict(self.settings.preparation)

    @property
    def groups(self) -> list[Group]:
        return groups_of(self.option, self.settings.spot)

    def count(self, role: Role) -> int:
        return sum(group.count for group in self.groups if group.role == role)

    def bounds(self, role: Role) -> tuple[int, int]:
        """Least and most nodes of a role: the plan's number unless it is elastic."""
        if (wanted := self.settings.range_of(role)) is None:
            return self.count(role), self.count(role)
        return wanted[0] or 1, wanted[1] or self.count(role)

    def check_ranges(self) -> None:
        """Raise InputError if the elastic ranges do not fit the plan."""
        for role in ROLES:
            if self.settings.range_of(role) is None:
                continue
            flags = f"--min-{role}s, --max-{role}s"
            if self.option.mode != "split":
                raise InputError(f"{flags}: expected a split, got {self.option.mode}", "--mode split takes the plan's")
            least, most = self.bounds(role)
            if least > most:
                raise InputError(f"{flags}: expected a least of at most {most}, got {least}")
            kinds = [group.kind for group in self.groups if group.role == role]
            if len(kinds) > 1 and most != self.count(role):
                what = f"{role}s are on {' and '.join(kinds)}"
                raise InputError(f"--max-{role}s: expected the plan's {self.count(role)}, as {what}, got {most}")

    def pools(self) -> list[NodePool]:
        """Nodes for jobs. If a role has several kinds of GPU, the least number is filled from the first kinds."""
        pools = []
        for role in ROLES:
            groups = [group for group in self.groups if group.role == role]
            least, most = self.bounds(role)
            for group in groups:
                size = most if len(groups) == 1 else group.count
                pools.append(NodePool(group, min(size, least), size))
                least -= pools[-1].least
        return pools

    def describe(self) -> str:
        option = self.option
        drafters, refiners = (" + ".join(f"{n} {k}" for k, n in c.items()) for c in (option.drafters, option.refiners))
        roles = f"{drafters} with both models" if option.mode == "colocated" else f"{drafters} draft, {refiners} refine"
        if option.both:
            roles += f", {' + '.join(f'{n} {k}' for k, n in option.both.items())} with both models"
        return f"{roles}, N = {option.draft_steps}, batch {option.batch}: {option.images_per_s:.1f} images/s predicted"


def entrypoint(deployment: Deployment) -> str:
    """The job as the one command that runs on the head node."""
    option, settings = deployment.option, deployment.settings
    assert settings.dataset is not None
    models = [part for name, value in settings.models.items() for part in ("--" + name.replace("_", "-"), value)]
    words = ["tandem", "generate", *models, "--classes", settings.classes, "--images", str(settings.images)]
    words += ["--draft-steps", str(option.draft_steps), "--batch", str(option.batch), "--placement", option.mode]
    counts: dict[Role, int] = {"drafter": option.num_drafters, "refiner": option.num_refiners}
    for role, count in counts.items():
        if settings.range_of(role) is None:
            words += [f"--{role}s", str(count)]
        else:
            least, most = deployment.bounds(role)
            words += [f"--min-{role}s", str(least), f"--max-{role}s", str(most)]
    if option.mode != "colocated":
        words += ["--drafters-on", selector_text("drafter"), "--refiners-on", selector_text("refiner")]
    if option.mode == "mixed":
        words += ["--colocated", str(option.num_both), "--colocated-on", selector_text("both")]
    for name, value in deployment.options.items():
        flag = name.replace("_", "-")
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        words += [f"--no-{flag}"] if value is False else [f"--{flag}", *([] if value is True else [text])]
    return shlex.join([*words, "--out", settings.dataset])


def selector_text(role: Role) -> str:
    return ",".join(f"{name}={value}" for name, value in role_selector(role).items())


def serve_config(deployment: Deployment) -> dict[str, Any]:
    """The endpoint as a Ray Serve config file. Nodes that it selects by label may join later."""
    option, settings = deployment.option, deployment.settings
    args: dict[str, Any] = {
        **settings.models,
        "draft_steps": option.draft_steps,
        "batch": option.batch,
        "placement": option.mode,
        "drafters": option.num_drafters,
        "refiners": option.num_refiners,
        **deployment.options,
        "drafters_on": selector_text("both" if option.mode == "colocated" else "drafter"),
        "refiners_on": selector_text("both" if option.mode == "colocated" else "refiner"),
        "autoscale": settings.autoscale,
    }
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": SERVE_PORT},
        "logging_config": {"enable_access_log": False},
        "applications": [{"name": "tandem", "route_prefix": "/", "import_path": "tandem_jobs.serve:app", "args": args}],
    }


class BlockText(str):
    """Text that YAML writes as a literal block."""


class Dumper(yaml.SafeDumper):
    """A dumper without anchors and aliases: people read these files."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def represent_block(dumper: yaml.SafeDumper, text: BlockText) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style="|")


Dumper.add_representer(BlockText, represent_block)


def to_yaml(*documents: dict[str, Any]) -> str:
    return "---\n".join(yaml.dump(d, Dumper=Dumper, sort_keys=False, width=110) for d in documents)


def with_header(lines: str, deployment: Deployment, body: str) -> str:
    """A file: a header with its purpose, use and plan, then its documents."""
    made = f"Made by `tandem cluster render` from a plan: {deployment.describe()}."
    text = "\n".join([*lines.strip().splitlines(), made, "Render it again instead of editing numbers."])
    return "".join(f"# {line}".rstrip() + "\n" for line in text.splitlines()) + body

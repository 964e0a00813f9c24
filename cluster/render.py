"""Files for real clusters from one plan, pure. Numbers are the plan's alone, so that no two files disagree."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

import yaml

from cluster.planned import Group, PlannedOption, Role, Spot, groups_of, role_selector

RAY_VERSION = "2.60.0"
SERVE_PORT = 8000


@dataclass(frozen=True)
class Settings:
    """What a plan does not say. Sizes are those of a node with one GPU."""

    image: str
    dataset: str | None
    images: int
    classes: str = "all"
    drafter: str = "embedded"
    refiner: str = "embedded"
    vqvae: str = "embedded"
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
    preparation: tuple[str, ...] = ()  # options of how the models compute that are on, such as fold_adaln

    @property
    def models(self) -> dict[str, str]:
        return {"drafter": self.drafter, "refiner": self.refiner, "vqvae": self.vqvae}


@dataclass(frozen=True)
class Deployment:
    """A plan's option with the settings: what every file is made from."""

    option: PlannedOption
    settings: Settings

    @property
    def groups(self) -> list[Group]:
        return groups_of(self.option, self.settings.spot)

    def describe(self) -> str:
        option = self.option
        drafters, refiners = (" + ".join(f"{n} {k}" for k, n in c.items()) for c in (option.drafters, option.refiners))
        who = f"{drafters} with both models" if option.mode == "colocated" else f"{drafters} draft, {refiners} refine"
        return f"{who}, N = {option.draft_steps}, batch {option.batch}: {option.images_per_s:.1f} images/s predicted"


def entrypoint(deployment: Deployment) -> str:
    """The job as the one command that runs on the head node."""
    option, settings = deployment.option, deployment.settings
    assert settings.dataset is not None
    models = [part for name, value in settings.models.items() for part in (f"--{name}", value)]
    words = ["tandem", "generate", *models, "--classes", settings.classes, "--images", str(settings.images)]
    words += ["--draft-steps", str(option.draft_steps), "--batch", str(option.batch), "--placement", option.mode]
    words += ["--drafters", str(option.num_drafters), "--refiners", str(option.num_refiners)]
    if option.mode == "split":
        words += ["--drafters-on", selector_text("drafter"), "--refiners-on", selector_text("refiner")]
    words += ["--" + name.replace("_", "-") for name in settings.preparation]
    return shlex.join([*words, "--out", settings.dataset])


def selector_text(role: Role) -> str:
    return ",".join(f"{name}={value}" for name, value in role_selector(role).items())


def serve_config(deployment: Deployment) -> dict[str, Any]:
    """The endpoint as a Ray Serve config file. Nodes that it names by labels may come later."""
    option, settings = deployment.option, deployment.settings
    args: dict[str, Any] = {
        **settings.models,
        "draft_steps": option.draft_steps,
        "batch": option.batch,
        "placement": option.mode,
        "drafters": option.num_drafters,
        "refiners": option.num_refiners,
        **dict.fromkeys(settings.preparation, True),
        "drafters_on": selector_text("both" if option.mode == "colocated" else "drafter"),
        "refiners_on": selector_text("both" if option.mode == "colocated" else "refiner"),
        "autoscale": settings.autoscale,
    }
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": SERVE_PORT},
        "logging_config": {"enable_access_log": False},
        "applications": [{"name": "tandem", "route_prefix": "/", "import_path": "jobs.serve:app", "args": args}],
    }


class Block(str):
    """Text of several lines that YAML shows as it is."""


class Dumper(yaml.SafeDumper):
    """Spells every value out where it stands: people read these files, and anchors are no help to them."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def represent_block(dumper: yaml.SafeDumper, text: Block) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style="|")


Dumper.add_representer(Block, represent_block)


def to_yaml(*documents: dict[str, Any]) -> str:
    return "---\n".join(yaml.dump(d, Dumper=Dumper, sort_keys=False, width=110) for d in documents)


def with_header(lines: str, deployment: Deployment, body: str) -> str:
    """A file: what it is and how it is used, the plan that it is made from, and its documents."""
    made = f"Made by `tandem cluster render` from a plan: {deployment.describe()}."
    text = "\n".join([*lines.strip().splitlines(), made, "Make it anew rather than editing numbers."])
    return "".join(f"# {line}".rstrip() + "\n" for line in text.splitlines()) + body

"""`tandem cluster render`: files of a real cluster from a plan, for KubeRay, Ray's cluster launcher and Ray Serve."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

import tandem
from tandem.errors import InputError
from tandem_cluster.kubernetes import raycluster, rayjob, rayservice
from tandem_cluster.launcher import AMI_PARAMETER, launcher, unknown_kinds
from tandem_cluster.plan_file import PlanFile, read_plan
from tandem_cluster.render import Deployment, RenderSettings, serve_config, to_yaml, with_header
from tandem_cluster.secrets import SECRET
from tandem_cluster.serve_variables import CONTROLLER
from tandem_jobs.cluster_options import QUEUE, AddonOptions, Ec2Options, KubernetesOptions, NodeOptions, split_pairs
from tandem_jobs.options.flags import COMMAS
from tandem_jobs.options.options import PreparationOptions
from tandem_jobs.options.spec import Spec
from tandem_jobs.plan import parse_hours
from tandem_jobs.run.progress import say
from tandem_workers.endpoint.proxy import HERE, HOOK
from tandem_workers.models.model_set import EMBEDDED, resolve_models
from tandem_workers.storage.s3_address import split_address

EXAMPLES = """examples:
  tandem plan --profile h100.json --profile l40s.json --gpus h100:2,l40s:6 --images 1.3e6 > plan.json
  tandem cluster render --plan plan.json --out deploy --image registry.example.com/tandem:1 \\
      --dataset s3://bucket/imagenet --classes 0-999 --role-arn arn:aws:iam::111122223333:role/tandem \\
      --drafter s3://bucket/var_d30.pth --refiner s3://bucket/var_d16.pth --vqvae s3://bucket/vae_ch160v4096z32.pth
  tandem cluster render --plan plan.json --mode split --out deploy       the best split, if colocated is best of all
  tandem cluster render --plan plan.json --out deploy --namespace images --pod-monitor --disruption-budgets \\
      --object-labels kueue.x-k8s.io/queue-name=gpus,team=vision --deadline 24h
  tandem cluster render --plan plan.json --mode split --out deploy --max-drafters 8 --max-refiners 16

  kubectl apply -f deploy/rayjob.yaml            the dataset, on its own cluster (KubeRay 1.5.1 or newer)
  kubectl apply -f deploy/raycluster.yaml        a permanent cluster, for tandem submit
  kubectl apply -f deploy/rayservice.yaml        the endpoint
  ray up deploy/launcher.yaml                    the same cluster on EC2, without Kubernetes
  serve deploy deploy/serve.yaml                 the endpoint on a running Ray cluster

All files use the plan's replicas, N, batch and kinds of GPU. Each role has its own nodes, marked with the Ray label
tandem/role. Files contain no secrets: the top of each names those it expects."""
# user:password@ before a host, or its start if the password has a slash; not a port, not an image's digest
LOGIN = re.compile(r"://[^/\s]*(?:@|:(?!\d+(?:/|$)))|^[^/\s@]+:[^/\s@]*@(?!sha256:[0-9a-f]{64}$)")
HINT = "--overwrite replaces them"
AMI_HINT = f"AWS names a current one: resolve:ssm:{AMI_PARAMETER}"
SERVE_LINES = """
The endpoint as a Ray Serve config file, for a cluster whose nodes have the labels of raycluster.yaml:
  serve deploy serve.yaml
API keys come from the environment of the cluster's nodes, as SHA-256 digests separated by commas
(TANDEM_API_KEY_DIGESTS). Set before Ray starts on them, too, what its Serve reads:
"""


class RenderSpec(Ec2Options, AddonOptions, KubernetesOptions, NodeOptions, PreparationOptions):
    """Write the files of a real cluster from a plan: KubeRay, Ray's cluster launcher, Ray Serve."""

    plan: Path = Field(description="the output of tandem plan: tandem plan ... > plan.json")
    out: Path = Field(description="folder for the files")
    mode: Literal["plan", "split", "colocated", "mixed"] = Field(
        "plan", description="plan: the best option of all; otherwise the best of this placement"
    )
    image: str = Field(
        f"tandem:{tandem.__version__}",
        description="image built from cluster/Dockerfile, by the name that nodes pull: HOST/NAME:TAG",
    )
    dataset: str | None = Field(None, description="s3://bucket/prefix for the job's dataset; without it no rayjob.yaml")
    classes: Annotated[str, COMMAS] = Field("all", description="classes of the dataset, as for tandem generate")
    drafter: str = Field(
        EMBEDDED,
        description="'embedded', an address (s3://, hf://, https://), a name (tandem models), or a file in the image",
    )
    refiner: str = Field(EMBEDDED, description="like --drafter; the smaller model")
    vqvae: str = Field(EMBEDDED, description="like the models")
    class_names: str | None = Field(
        None, description="names of the classes: an s3:// address, a file in the image, 'imagenet' or 'numbers'"
    )
    name: str = Field("tandem", description="name of the cluster; the job is NAME-job, the endpoint NAME-endpoint")
    overwrite: bool = Field(False, description="replace existing files that differ")

    @model_validator(mode="before")
    @classmethod
    def check_logins(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Runs before all other checks, because their messages repeat the values."""
        for name, value in given.items():
            texts = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
            if any(LOGIN.search(text) for text in texts if isinstance(text, str)):
                flag = "--" + name.replace("_", "-")
                raise ValueError(
                    f"{flag}: expected an address without user or password, which would be written to the files"
                )
            if name == "env":
                check_no_secret(",".join(map(str, texts)).split(","))
        return given

    @model_validator(mode="after")
    def check_queue(self) -> RenderSpec:
        if self.queued and self.scales:
            scaling = "--autoscale, --release-refiners, --min- and --max- options"
            raise ValueError(f"expected no {scaling} with the label {QUEUE}: Kueue refuses clusters that scale")
        return self

    @model_validator(mode="after")
    def check_int8(self) -> RenderSpec:
        if self.int8:
            raise ValueError("--int8: expected none, as the nodes of a plan have GPUs, where bfloat16 is faster")
        return self

    @field_validator("image", "drafter", "refiner", "vqvae", "class_names", "region")
    @classmethod
    def check_word(cls, text: str | None) -> str | None:
        if text is not None and not re.fullmatch(r"[^\s\x00-\x1f]+", text):
            raise ValueError("expected text without spaces")
        return text

    @field_validator("classes")
    @classmethod
    def check_line(cls, text: str) -> str:
        """Names of classes may have spaces and commas."""
        if not text.strip() or not text.isprintable():
            raise ValueError("expected one line of printable text")
        return text

    @field_validator("dataset")
    @classmethod
    def check_dataset(cls, text: str | None) -> str | None:
        if text is not None:
            split_address(text, "s3://bucket/prefix")
            if " " in text:
                raise ValueError("expected s3://bucket/prefix without spaces")
        return text

    @field_validator("name")
    @classmethod
    def check_name(cls, text: str) -> str:
        if not re.fullmatch(r"[a-z]([a-z0-9-]{0,28}[a-z0-9])?", text):
            raise ValueError("expected at most 30 small letters, digits and hyphens that begin with a letter")
        return text


def check_no_secret(pairs: Iterable[str]) -> None:
    """Raises ValueError, without their values, for variables that look like secrets."""
    for pair in pairs:
        if SECRET.search(name := pair.partition("=")[0]):
            raise ValueError(
                f"--env: expected no secrets, which would be written to the files, got {name}; see --env-from-secret"
            )


def run(spec: RenderSpec) -> dict[str, str]:
    """Build all files, then write them. Files that cannot be made from these options are reported and left out."""
    deployment = read_deployment(spec)
    say(deployment.describe())
    files = documents(deployment)
    write_files(files, spec.out, spec.overwrite)
    for name in files:
        print(spec.out / name, flush=True)
    return files


def read_deployment(spec: RenderSpec) -> Deployment:
    """The plan with the settings, checked. Raises InputError."""
    plan = read_plan(spec.plan)
    option = plan.option(spec.mode)
    if spec.drafter == EMBEDDED:
        models = resolve_models(EMBEDDED, EMBEDDED, EMBEDDED, False)
        try:
            models.drafter_config.pyramid.check_draft_steps(option.draft_steps)
        except InputError as error:
            hint = "--drafter, --refiner and --vqvae name the models of the plan; the default is the embedded ones"
            raise InputError(f"--plan: {error}", hint) from None
    deployment = Deployment(option, read_settings(spec, plan), plan.settings.get(option.draft_steps, {}))
    deployment.check_ranges()
    return deployment


def read_preparation(options: PreparationOptions) -> dict[str, bool | str]:
    """Preparation options that differ from their defaults."""
    names = [name for name in PreparationOptions.model_fields if name not in Spec.model_fields]
    given = {name: getattr(options, name) for name in names}
    return {name: value for name, value in given.items() if value != PreparationOptions.model_fields[name].default}


def read_settings(spec: RenderSpec, plan: PlanFile) -> RenderSettings:
    own: dict[str, Any] = {
        "images": plan.images,
        "instances": parse_instances(spec.instances or ""),
        "preparation": read_preparation(spec),
        "object_labels": split_pairs(spec.object_labels),
        "env": split_pairs(spec.env),
        "serve_env": tuple(serve_variables().items()),
        "deadline_s": math.ceil(3600 * parse_hours(spec.deadline)) if spec.deadline else None,
    }
    given = {name: getattr(spec, name) for name in set(RenderSettings.__dataclass_fields__) - set(own)}
    return RenderSettings(**given, **own)


def serve_variables() -> dict[str, str]:
    """What Ray Serve's processes need in their environment. Where `tandem serve` starts Ray it sets them itself."""
    return {**CONTROLLER, HOOK: HERE}


def serve_lines() -> str:
    return SERVE_LINES + "".join(f"  export {name}={value}\n" for name, value in serve_variables().items())


def parse_instances(text: str) -> tuple[tuple[str, str, int], ...]:
    """'l20=x.large,h100=p5.48xlarge:8' -> kind, type, GPUs. Raises InputError."""
    found = {}
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"\s*([\w.-]+)=([a-z0-9-]+\.[a-z0-9-]+)(?::([1-9]\d?))?\s*", part)
        if not match or match[1].lower() in found:
            raise InputError(f"--instances: expected KIND=TYPE or KIND=TYPE:GPUS, each kind once, got {part!r}")
        found[match[1].lower()] = (match[1].lower(), match[2], int(match[3] or 1))
    return tuple(found.values())


def documents(deployment: Deployment) -> dict[str, str]:
    """The text of every file, by name."""
    settings = deployment.settings
    if not names_registry(settings.image):
        say(f"warning: --image {settings.image} names no registry: nodes without it will try Docker Hub")
    if settings.ingress_host and not settings.ingress_tls_secret:
        say("warning: rayservice.yaml: without --ingress-tls-secret clients send their keys in clear text")
    files = {"raycluster.yaml": raycluster(deployment)}
    if settings.dataset is None:
        say("left out: rayjob.yaml, which needs --dataset s3://bucket/prefix")
    else:
        files["rayjob.yaml"] = rayjob(deployment)
    if deployment.option.mode == "mixed":
        say("left out: rayservice.yaml and serve.yaml: the endpoint has no mixed placement; see --mode split")
    else:
        files["rayservice.yaml"] = rayservice(deployment)
        files["serve.yaml"] = with_header(serve_lines(), deployment, to_yaml(serve_config(deployment)))
    files |= launcher_file(deployment)
    return files


def names_registry(image: str) -> bool:
    """Whether an image name includes a registry, by the rule of container runtimes."""
    host, slash, _ = image.partition("/")
    return bool(slash) and ("." in host or ":" in host or host == "localhost")


def launcher_file(deployment: Deployment) -> dict[str, str]:
    """`launcher.yaml`; empty, with a line on stderr, if an option is missing."""
    settings = deployment.settings
    if settings.ami is None:
        say(f"left out: launcher.yaml, which needs --ami: AMIs differ by region, and Ray's own is too old; {AMI_HINT}")
        return {}
    if kinds := unknown_kinds(deployment):
        say(f"left out: launcher.yaml: no EC2 instance with {', '.join(kinds)} is known; see --instances")
        return {}
    if settings.instance_profile is None:
        say("launcher.yaml: its workers have no access to a dataset; see --instance-profile")
    elif settings.head_instance_profile is None:
        say("launcher.yaml: Ray's default head may not start workers with a profile; see --head-instance-profile")
    return {"launcher.yaml": launcher(deployment)}


def write_files(files: dict[str, str], folder: Path, overwrite: bool) -> None:
    """Write all files or none. Raises InputError if an existing file differs, or the folder cannot be written."""
    folder = Path(os.path.expanduser(folder))
    try:
        differ = [name for name, text in files.items() if (folder / name).exists() and not is_same(folder / name, text)]
        if differ and not overwrite:
            raise InputError(
                f"--out: expected none or the same files in {folder}, got different {', '.join(differ)}", HINT
            )
        folder.mkdir(parents=True, exist_ok=True)
        aside = {folder / name: folder / f".{name}.tmp" for name in files}
        try:
            for path, temporary in aside.items():
                temporary.write_text(files[path.name], encoding="utf-8")
            for path, temporary in aside.items():
                temporary.replace(path)
        finally:
            for temporary in aside.values():
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"--out: cannot write {error.filename or folder}: {error.strerror}") from error


def is_same(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()

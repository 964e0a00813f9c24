"""Options of `tandem cluster render` beyond the plan, in the groups of its `--help`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated

from pydantic import Field, PositiveInt, field_validator, model_validator

from tandem_cluster.plan_file import Spot
from tandem_cluster.pods import DRAIN, INSTANCE, KUEUE
from tandem_jobs.options.flags import COMMAS
from tandem_jobs.options.spec import Spec

QUEUE = KUEUE + "queue-name"
WORD = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
DOMAIN = r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?"  # names of Kubernetes' objects and of hosts
LABEL = re.compile(rf"({DOMAIN}/)?{WORD}=({WORD})?")
OURS = ("app.kubernetes.io/name", INSTANCE)
# Variables that the files, KubeRay or the image set; KubeRay refuses some of them
SET_ALREADY = {"TANDEM_CACHE", DRAIN, "REDIS_USERNAME", "REDIS_PASSWORD", "RAY_REDIS_ADDRESS", "RAY_AUTH_MODE", "PATH"}
SET_ALREADY |= {"RAY_ADDRESS", "RAY_IP", "RAY_CLUSTER_NAME", "RAY_enable_autoscaler_v2", "LD_LIBRARY_PATH"}


class NodeOptions(Spec):
    """Nodes: their sizes, and how the clusters scale."""

    spot: Spot = Field("refiners", description="which replicas run on spot nodes: refiners, all, none")
    cpus: PositiveInt = Field(8, description="CPU cores for each GPU, to encode and store")
    memory_gib: PositiveInt = Field(32, description="memory for each GPU; a quarter is the object store")
    disk_gib: PositiveInt = Field(100, description="disk of a node: half for weights, half for spilled objects")
    idle_minutes: PositiveInt = Field(10, description="minutes after which the autoscaler removes idle nodes")
    min_drafters: PositiveInt | None = Field(
        None, description="drafters that the job starts with and the cluster keeps; default with --max-drafters: 1"
    )
    max_drafters: PositiveInt | None = Field(
        None, description="drafters that the job may grow to through Ray's autoscaler; default: the plan's"
    )
    min_refiners: PositiveInt | None = Field(None, description="the same for refiners")
    max_refiners: PositiveInt | None = Field(None, description="the same for refiners")
    release_refiners: bool = Field(
        False,
        description="let a permanent cluster scale down idle spot nodes; jobs still need their nodes at the start",
    )
    autoscale: bool = Field(
        False, description="the endpoint starts with one replica of each role and scales with load up to the plan"
    )

    @property
    def scales(self) -> bool:
        """Whether any of the clusters has an autoscaler."""
        ranges = (self.min_drafters, self.max_drafters, self.min_refiners, self.max_refiners)
        return self.release_refiners or self.autoscale or any(ranges)


class KubernetesOptions(Spec):
    """Kubernetes: requirements of its cluster on objects and pods."""

    namespace: str | None = Field(None, description="namespace of all objects; default: kubectl's")
    object_labels: tuple[str, ...] = Field(
        (), description=f"labels of objects and pods, NAME=VALUE; {QUEUE}=QUEUE puts cluster and job in Kueue's queue"
    )
    image_pull_secrets: tuple[str, ...] = Field((), description="secrets for the image's registry")
    priority_class: str | None = Field(None, description="PriorityClass of all pods")
    env: tuple[str, ...] = Field((), description="environment variables of all nodes, NAME=VALUE; no secrets")
    env_from_secret: tuple[str, ...] = Field((), description="secrets whose keys become variables of all nodes")
    suspend: bool = Field(False, description="create job and cluster suspended, until a person or a queue resumes them")
    deadline: str | None = Field(None, description="time limit of one attempt of the job: 90m, 24h, 2d")
    role_arn: str | None = Field(None, description="IAM role of the pods on EKS; default: Pod Identity or a secret")

    @field_validator("object_labels")
    @classmethod
    def check_labels(cls, pairs: tuple[str, ...]) -> tuple[str, ...]:
        for pair in pairs:
            if not LABEL.fullmatch(pair):
                raise ValueError("expected NAME=VALUE of a Kubernetes label")
            if pair.partition("=")[0] in OURS or pair.startswith("ray.io/"):
                raise ValueError(f"expected labels other than {', '.join(OURS)} and KubeRay's")
        return once(pairs)

    @field_validator("env")
    @classmethod
    def check_variables(cls, pairs: tuple[str, ...]) -> tuple[str, ...]:
        for pair in pairs:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*=[^\x00-\x1f]*", pair):
                raise ValueError("expected NAME=VALUE")
            if pair.partition("=")[0] in SET_ALREADY:
                raise ValueError("expected variables that neither these files nor KubeRay set")
        return once(pairs)

    @field_validator("image_pull_secrets", "env_from_secret")
    @classmethod
    def check_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            check_domain(name)
        return names

    @field_validator("priority_class")
    @classmethod
    def check_class(cls, name: str | None) -> str | None:
        return name and check_domain(name)

    @field_validator("namespace")
    @classmethod
    def check_namespace(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name):
            raise ValueError("expected small letters, digits and hyphens")
        return name

    @property
    def queued(self) -> bool:
        return any(pair.startswith(f"{QUEUE}=") for pair in self.object_labels)


class AddonOptions(Spec):
    """Optional parts on Kubernetes: Redis, metrics, disruption budgets, ingress."""

    gcs_redis: str | None = Field(
        None,
        description="HOST:PORT of a Redis that keeps the cluster's state, so that it survives the loss of its head",
    )
    gcs_redis_secret: str | None = Field(
        None, description="secret with the password of --gcs-redis under the key 'password'"
    )
    pod_monitor: bool = Field(False, description="a PodMonitor of all nodes for the Prometheus operator")
    disruption_budgets: bool = Field(
        False, description="budgets that never evict heads, and evict the endpoint's replicas one at a time"
    )
    ingress_host: str | None = Field(None, description="host name of an Ingress for the endpoint")
    ingress_class: str | None = Field(None, description="IngressClass; default: the cluster's")
    ingress_tls_secret: str | None = Field(None, description="secret with the certificate of --ingress-host")

    @field_validator("gcs_redis")
    @classmethod
    def check_redis(cls, address: str | None) -> str | None:
        if address is not None and not re.fullmatch(r"(rediss?://)?[\w.-]+:\d{1,5}", address):
            raise ValueError("expected HOST:PORT, redis://HOST:PORT or rediss://HOST:PORT")
        return address

    @field_validator("ingress_host", "ingress_class", "ingress_tls_secret", "gcs_redis_secret")
    @classmethod
    def check_objects(cls, name: str | None) -> str | None:
        return name and check_domain(name)

    @model_validator(mode="after")
    def check_addons(self) -> AddonOptions:
        if self.gcs_redis_secret and not self.gcs_redis:
            raise ValueError("expected --gcs-redis with --gcs-redis-secret, got none")
        if (self.ingress_class or self.ingress_tls_secret) and not self.ingress_host:
            raise ValueError("expected --ingress-host with --ingress-class and --ingress-tls-secret, got none")
        return self


class Ec2Options(Spec):
    """EC2: for Ray's cluster launcher."""

    region: str = Field("us-west-2", description="EC2 region")
    instances: Annotated[str | None, COMMAS] = Field(
        None, description="EC2 instance type for each kind of GPU: KIND=TYPE, or KIND=TYPE:GPUS for several GPUs"
    )
    ami: str | None = Field(
        None,
        description="image of EC2 nodes, with NVIDIA's driver: ami-..., or resolve:ssm:PARAMETER; without it no "
        "launcher.yaml is written",
    )
    instance_profile: str | None = Field(
        None, description="instance profile of the EC2 workers, with access to the dataset"
    )
    head_instance_profile: str | None = Field(
        None,
        description="instance profile of the EC2 head, which starts the workers: EC2, iam:PassRole, ssm:GetParameters",
    )

    @field_validator("ami")
    @classmethod
    def check_ami(cls, text: str | None) -> str | None:
        if text is not None and not re.fullmatch(r"ami-([0-9a-f]{8}|[0-9a-f]{17})|resolve:ssm:/[\w./-]+", text):
            raise ValueError("expected ami- and 8 or 17 hexadecimal digits, or resolve:ssm:/PARAMETER")
        return text


def check_domain(name: str) -> str:
    if not re.fullmatch(DOMAIN, name):
        raise ValueError("expected small letters, digits, hyphens and dots, as Kubernetes names objects")
    return name


def once(pairs: tuple[str, ...]) -> tuple[str, ...]:
    """Raise ValueError if a NAME of NAME=VALUE is repeated."""
    names = [pair.partition("=")[0] for pair in pairs]
    if len(names) != len(set(names)):
        raise ValueError("expected each name once")
    return pairs


def split_pairs(pairs: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """'NAME=VALUE' -> (NAME, VALUE)."""
    return tuple((pair.partition("=")[0], pair.partition("=")[2]) for pair in pairs)

"""The file for Ray's cluster launcher (`ray up`) on EC2: one node type for each group of a plan. Pure."""

from __future__ import annotations

import math
import shlex
from typing import Any

from tandem_cluster.driver import OLDEST_DRIVERS
from tandem_cluster.pods import CACHE, DRIVER_CHECK, SPILL, STORE_SHARE
from tandem_cluster.render import RAY_VERSION, Deployment, NodePool, RenderSettings, to_yaml, with_header

HEAD = "head"
HEAD_TYPE = "m6i.xlarge"
# Instances with one GPU of the kind, or with as few as EC2 offers
INSTANCES = {
    "t4": ("g4dn.2xlarge", 1),
    "l4": ("g6.2xlarge", 1),
    "a10g": ("g5.2xlarge", 1),
    "l40s": ("g6e.2xlarge", 1),
    "a100": ("p4d.24xlarge", 8),
    "h100": ("p5.4xlarge", 1),
    "h200": ("p5en.48xlarge", 8),
}
AMI_PARAMETER = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
TOKEN = "~/.ray/auth_token"
HOST = "/tmp/tandem"  # on the nodes, outside the container
START = "ulimit -n 65536; RAY_AUTH_MODE=token ray start"
LINES = f"""
A Ray cluster on EC2. Make the token for access once, on the machine that starts the cluster:
  ray get-auth-token --generate
  ray up launcher.yaml
  ray dashboard launcher.yaml          and from another terminal: tandem submit ...
  ray down launcher.yaml
The AMI (ImageId) is an Ubuntu with Docker, NVIDIA's container toolkit and driver {OLDEST_DRIVERS[13]} or newer, which
torch in the image needs: workers check that before Ray starts. AWS says which one is current in a region:
  aws ssm get-parameter --query Parameter.Value --output text --region REGION --name \\
    {AMI_PARAMETER}
The head starts the workers: its instance profile needs AmazonEC2FullAccess, iam:PassRole for the workers' role and,
like your own account, ssm:GetParameters if ImageId is resolve:ssm:. The profile that Ray makes without
--head-instance-profile covers only EC2 and S3. The workers' profile needs access to the dataset.
"""


def unknown_kinds(deployment: Deployment) -> list[str]:
    """Kinds of GPU without a known EC2 instance type."""
    known = {**INSTANCES, **{kind: name for kind, name, _ in deployment.settings.instances}}
    return sorted({group.kind for group in deployment.groups} - set(known))


def launcher(deployment: Deployment) -> str:
    """The file's text. The settings need an AMI and an instance type for every kind: see `unknown_kinds`."""
    settings = deployment.settings
    node_types = {pool.group.name: worker_type(settings, pool) for pool in deployment.pools()}
    head: dict[str, Any] = {
        "resources": {"CPU": 0},
        "node_config": node_config(settings, HEAD_TYPE, settings.head_instance_profile),
    }
    config = {
        "cluster_name": settings.name,
        "max_workers": sum(node["max_workers"] for node in node_types.values()),
        "idle_timeout_minutes": settings.idle_minutes,
        "provider": {"type": "aws", "region": settings.region, "cache_stopped_nodes": False},
        "auth": {"ssh_user": "ubuntu"},
        "docker": {
            "image": settings.image,
            "container_name": "tandem",
            "pull_before_run": True,
            "run_options": [
                "--ulimit nofile=65536:65536",
                "--env NVIDIA_VISIBLE_DEVICES=all",  # the image does not set it
                "--env NVIDIA_DRIVER_CAPABILITIES=compute,utility",
                f"--env TANDEM_CACHE={CACHE}",
                *(f"--env {shlex.quote(f'{name}={value}')}" for name, value in settings.env),
                f"--volume {HOST}/cache:{CACHE}",
                f"--volume {HOST}/spill:{SPILL}",
            ],
        },
        "head_node_type": HEAD,
        "available_node_types": {HEAD: head, **node_types},
        "file_mounts": {TOKEN: TOKEN},
        "initialization_commands": [f"mkdir -p {HOST}/cache {HOST}/spill", f"chmod 777 {HOST}/cache {HOST}/spill"],
        "setup_commands": [
            f"""python -c "import ray; assert ray.__version__ == '{RAY_VERSION}', ray.__version__" """.strip()
        ],
        "head_setup_commands": [],
        "worker_setup_commands": [shlex.join(DRIVER_CHECK)],
        "head_start_ray_commands": [
            "ray stop",
            f"{START} --head --port=6379 --num-cpus=0 --dashboard-host=127.0.0.1 "
            f"--object-spilling-directory={SPILL} --autoscaling-config=~/ray_bootstrap_config.yaml",
        ],
        "worker_start_ray_commands": [
            "ray stop",
            f"{START} --address=$RAY_HEAD_IP:6379 --object-spilling-directory={SPILL} "
            f"--object-store-memory={int(STORE_SHARE * settings.memory_gib * 2**30)}",
        ],
    }
    return with_header(LINES, deployment, to_yaml(config))


def worker_type(settings: RenderSettings, pool: NodePool) -> dict[str, Any]:
    group = pool.group
    given = {kind: (name, gpus) for kind, name, gpus in settings.instances}
    instance, gpus = given.get(group.kind) or INSTANCES[group.kind]
    node = node_config(settings, instance, settings.instance_profile)
    if group.spot:
        node["InstanceMarketOptions"] = {"MarketType": "spot"}
    return {
        "min_workers": 0 if settings.release_refiners and group.spot else math.ceil(pool.least / gpus),
        "max_workers": math.ceil(pool.most / gpus),
        "resources": {"CPU": settings.cpus * gpus, "GPU": gpus},
        "labels": group.labels,
        "node_config": node,
    }


def node_config(settings: RenderSettings, instance: str, profile: str | None) -> dict[str, Any]:
    """Parameters of EC2's RunInstances."""
    node = {"InstanceType": instance, "ImageId": settings.ami, "BlockDeviceMappings": disk(settings)}
    return node | ({"IamInstanceProfile": {"Name": profile}} if profile else {})


def disk(settings: RenderSettings) -> list[dict[str, Any]]:
    """The node's disk, with room for the image."""
    return [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": settings.disk_gib + 100, "VolumeType": "gp3"}}]

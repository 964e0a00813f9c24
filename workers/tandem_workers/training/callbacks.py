"""Progress of a training run for TensorBoard and Weights & Biases, where they are installed.

Ray Train calls them in its controller, on the driver's node, with the records of all workers, which are alike.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from ray.train import UserCallback

from tandem.errors import InputError


class TensorBoardCallback(UserCallback):
    """Writes event files into a local folder."""

    def __init__(self, folder: str) -> None:
        check_installed("tensorboard")
        self.folder = folder
        self.writer: Any = None

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        from torch.utils.tensorboard import SummaryWriter

        record = metrics[0]
        if self.writer is None:  # curves of an earlier start go on from here
            self.writer = SummaryWriter(self.folder, purge_step=record["step"])
        for name, value in record.items():
            if name != "step":
                self.writer.add_scalar(name, value, record["step"])
        self.writer.flush()


class WandbCallback(UserCallback):
    """Logs to a project of Weights & Biases; the run of a name goes on where it was. Its key is in the environment."""

    def __init__(self, project: str, name: str) -> None:
        check_installed("wandb")
        self.project, self.name = project, name
        self.run: Any = None

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        import wandb

        if self.run is None:
            self.run = wandb.init(project=self.project, name=self.name, id=self.name, resume="allow")
        record = dict(metrics[0])
        self.run.log(record, step=record.pop("step"))


def check_installed(module: str) -> None:
    """InputError unless a module can be imported."""
    if importlib.util.find_spec(module) is None:
        raise InputError(f"expected the package {module}, which is not installed", f"pip install {module}")

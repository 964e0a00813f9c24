"""Options that all trainings share: length, batches, workers, checkpoints, and what is shown."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from tandem.training.parallel import ComputeDtype, Sharding
from tandem.training.schedule import Schedule
from tandem.training.state import LoopSettings
from tandem_jobs.options.options import Replicas, Threads
from tandem_jobs.options.spec import Spec

RESUME = """The same command goes on from the last checkpoint in --out, with the same batches, also with other
--workers; another run is refused there. A killed worker or a lost node is replaced, and the run goes on by itself.

OUT/
  training.json   what is trained, by which settings
  log.jsonl       a line every --log-every steps, and one for each score on held-out data
  samples/        sheets of images by the average of the weights
  checkpoints/    the last --keep, each committed last
"""


class TrainingOptions(Spec):
    """How a run trains. `--micro-batch`, `--workers`, `--shard` and `--threads` change rounding alone."""

    out: str = Field(description="folder or s3://bucket/prefix of the run; the same command goes on there")
    seed: NonNegativeInt = Field(0, description="seed of new weights, batches and label dropout")
    warmup: NonNegativeInt = Field(100, description="steps in which the learning rate rises")
    schedule: Schedule = Field("cosine", description="how it falls afterwards, to 1 % of its peak; constant: not")
    weight_decay: float = Field(0.05, ge=0, description="of AdamW, for matrices")
    beta2: float = Field(0.95, gt=0, lt=1, description="of AdamW")
    grad_clip: float = Field(1.0, ge=0, description="most norm of the gradients; 0: any")
    ema: float = Field(0.999, ge=0, lt=1, description="decay of the average of the weights, which is what is exported")
    micro_batch: PositiveInt | None = Field(
        None,
        description="rows that go through a model at once; a batch of more accumulates gradients; default: what fits",
    )
    dtype: ComputeDtype | Literal["auto"] = Field(
        "auto",
        description="of products; weights, average and optimiser are float32. auto: bfloat16 on GPUs, float32 on CPUs",
    )
    checkpoint_every: PositiveInt = Field(250, description="steps between checkpoints, and between scores")
    keep: PositiveInt = Field(2, description="checkpoints that stay")
    log_every: PositiveInt = Field(25, description="steps between lines of the log")
    samples_every: NonNegativeInt = Field(1000, description="steps between sheets of images; 0: none")
    workers: Replicas = Field(1, description="processes that train together, each on its own GPU if there are any")
    device: Literal["auto", "cpu", "gpu"] = Field("auto", description="auto: GPUs, if the cluster has any")
    threads: Threads | None = Field(None, description="CPU threads of a worker; default: the CPUs, shared evenly")
    worker_timeout: PositiveInt = Field(600, description="seconds until a worker that does not answer is replaced")
    address: str | None = Field(None, description="Ray cluster to join (also RAY_ADDRESS); default: start Ray here")
    tensorboard: str | None = Field(None, description="folder for TensorBoard's files (needs tensorboard)")
    wandb: str | None = Field(None, description="project of Weights & Biases (needs wandb, which reads WANDB_API_KEY)")

    def settings(self, steps: int, batch: int, peak_lr: float, sharding: Sharding, on_gpus: bool) -> LoopSettings:
        """Settings of the loop."""
        dtype = self.dtype if self.dtype != "auto" else "bfloat16" if on_gpus else "float32"
        return LoopSettings(
            steps,
            batch,
            peak_lr,
            self.micro_batch,
            min(self.warmup, steps),
            self.schedule,
            weight_decay=self.weight_decay,
            betas=(0.9, self.beta2),
            grad_clip=self.grad_clip,
            ema_decay=self.ema,
            dtype=dtype,
            sharding=sharding,
            log_every=self.log_every,
            checkpoint_every=self.checkpoint_every,
            seed=self.seed,
        )


class TokenOptions(TrainingOptions):
    """What a transformer learns from."""

    tokens: str = Field(description="token set to learn from (tandem tokenize): a folder or s3://bucket/prefix")
    heldout: str | None = Field(None, description="token set to score on, by the same VQVAE and of the same classes")
    vqvae: str = Field("embedded", description="the VQVAE that made the tokens: 'embedded', a file, address or name")
    balance: float = Field(
        1.0, ge=0, le=1, description="a class is drawn by (its distinct pictures)^BALANCE; 1: every picture alike"
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="share of labels replaced by 'no class', for guidance")
    shard: Sharding = Field(
        "ddp",
        description="what each of several workers holds: ddp, the whole model; fsdp, a part of each tensor",
    )
    recompute: bool = Field(False, description="compute blocks again for the gradients: slower, with far less memory")

"""The tables of docs/GPU.md on training: `python -m tandem.training.train_tables` prints them, in minutes."""

from __future__ import annotations

from dataclasses import replace

from tandem.config import VAR_PRESETS
from tandem.counting.roofline import CARDS, row, short, table
from tandem.training.recipe import IMAGENET_IMAGES, ORIGINAL_EPOCHS, RECIPES
from tandem.training.train_costs import StepBytes, TrainingStep, step_bytes

CARD = next(card for card in CARDS if card.name.startswith("H100"))
GPUS, ROWS, PEAK_SHARE = 8, 8, 0.4
D16, D30, D36 = (VAR_PRESETS[name] for name in ("d16", "d30", "d36"))
DRAFTER_EPOCHS = RECIPES["drafter"].share * ORIGINAL_EPOCHS[D30.depth]
REFINER_EPOCHS = RECIPES["refiner"].share * ORIGINAL_EPOCHS[D16.depth]
# What is trained, the step of one GPU, and the epochs of ImageNet that it takes
RUNS: list[tuple[str, TrainingStep, float]] = [
    *((f"drafter d30, N = {n}", TrainingStep(D30, draft_steps=n), DRAFTER_EPOCHS) for n in (6, 7, 8, 9)),
    (
        "drafter d30, N = 8, from guided d30",
        TrainingStep(D30, draft_steps=8, teacher=D30, guided=True),
        DRAFTER_EPOCHS,
    ),
    ("refiner d16 from d30", TrainingStep(D16, teacher=D30), REFINER_EPOCHS),
    ("refiner d16 from guided d30", TrainingStep(D16, teacher=D30, guided=True), REFINER_EPOCHS),
    ("drafter d36, N = 8, 512 px", TrainingStep(D36, draft_steps=8), DRAFTER_EPOCHS),
    ("VAR-d16 from the beginning", TrainingStep(D16), ORIGINAL_EPOCHS[D16.depth]),
    ("VAR-d30 from the beginning", TrainingStep(D30), ORIGINAL_EPOCHS[D30.depth]),
]


def memory_row(name: str) -> str:
    """Row of a model: GB on each GPU, and of the activations of `ROWS` images, kept and computed again."""
    step = TrainingStep(VAR_PRESETS[name], ROWS, sharding="fsdp", gpus=GPUS)
    kept, again = step_bytes(step), step_bytes(replace(step, recompute=True))
    parts = (kept.weights, kept.gradients, kept.optimiser, kept.average, kept.copies)
    sides = [short(working(each) / 1e9) for each in (kept, again)] + [short(each.total / 1e9) for each in (kept, again)]
    return row([name, short(step.student.num_parameters / 1e6), *(short(part / 1e9) for part in parts), *sides])


def working(counted: StepBytes) -> int:
    """Bytes that grow with the images."""
    return counted.activations + counted.working


def hours_row(name: str, step: TrainingStep, epochs: float) -> str:
    """Row of a run on all GPUs; activations kept, then computed again."""
    steps = [replace(step, gpus=GPUS, recompute=recompute) for recompute in (False, True)]
    rates = [each.images_per_s(CARD.tflops, PEAK_SHARE) for each in steps]
    hours = [epochs * IMAGENET_IMAGES / rate / 3600 for rate in rates]
    work = [each.flops / 1e12 for each in steps]
    return row([name, f"{epochs:g}", *(" / ".join(map(short, pair)) for pair in (work, rates, hours))])


def hours_table() -> str:
    columns = ["run", "epochs", "TFLOP an image", "images/s", "hours"]
    return table("Hours on 8 H100 at 40 % of their peak", columns, [hours_row(*run) for run in RUNS])


def memory_table() -> str:
    columns = ["model", "million weights", "weights", "gradients", "optimiser", "average", "gathered"]
    columns += ["8 images", "the same, recomputed", "total", "total, recomputed"]
    title = "GB on each of 8 GPUs with FSDP, bfloat16 with float32 masters, 8 images a GPU"
    return table(title, columns, map(memory_row, VAR_PRESETS))


if __name__ == "__main__":
    print(memory_table() + "\n\n" + hours_table())

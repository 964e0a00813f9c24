"""The live line of a training run: loss, images a second and time left."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from tandem_jobs.run.progress import is_terminal, say

CLEAR = "\r\x1b[K"


class LiveLine:
    """Shows records of a run of `steps` steps of `batch` images: in one line on a terminal, in lines elsewhere.

    Scores of an evaluation, and what `say` says, stay in lines of their own.
    """

    def __init__(self, steps: int, batch: int) -> None:
        self.steps, self.batch, self.live = steps, batch, is_terminal()

    def record(self, values: Mapping[str, float]) -> None:
        text = self.text(values)
        if not self.live or "loss" not in values:
            self.say(text)
        else:
            print(f"{CLEAR}{text}", end="", file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        say(f"{CLEAR}{line}" if self.live else line)

    def close(self) -> None:
        """Leave the last line as it is, and go on below it."""
        if self.live:
            say("")

    def text(self, values: Mapping[str, float]) -> str:
        """One record, without the values of single scales."""
        parts = [f"step {values['step']:.0f}/{self.steps}"]
        if "loss" in values:
            rate = values["images_per_s"]
            left_s = (self.steps - values["step"]) * self.batch / max(1e-9, rate)
            parts += [f"loss {values['loss']:.4g}", f"{rate:.3g} images/s", f"{duration(left_s)} left"]
        else:
            parts += [
                f"{name.replace('_', ' ')} {value:.4g}"
                for name, value in values.items()
                if name not in ("step", "seconds") and "_scale_" not in name
            ]
        return "  ".join(parts)


def duration(seconds: float) -> str:
    """A time in its two largest units."""
    minutes, hours = round(seconds) // 60, round(seconds) // 3600
    if hours >= 24:
        return f"{hours // 24} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {round(seconds) % 60} s" if minutes else f"{round(seconds)} s"

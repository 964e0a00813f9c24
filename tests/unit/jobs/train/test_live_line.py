"""What a training run shows: one line on a terminal, lines elsewhere."""

import pytest

from tandem_jobs.train import live_line
from tandem_jobs.train.live_line import LiveLine, duration

RECORD = {"step": 25, "seconds": 9.1, "loss": 1.25, "loss_scale_1": 2.0, "lr": 0.1, "images_per_s": 50.0}
SCORES = {"step": 50, "seconds": 19.1, "heldout_loss": 1.5, "heldout_loss_scale_1": 2.0}
TEXT = "step 25/100  loss 1.25  50 images/s  48 s left"


def shown(monkeypatch, capsys, terminal: bool) -> str:
    monkeypatch.setattr(live_line, "is_terminal", lambda: terminal)
    line = LiveLine(steps=100, batch=32)
    line.record(RECORD)
    line.say("a worker was lost")
    line.record(SCORES)
    line.record(RECORD)
    line.close()
    return capsys.readouterr().err


def test_lines_where_nobody_watches(monkeypatch, capsys):
    lines = [TEXT, "a worker was lost", "step 50/100  heldout loss 1.5", TEXT]
    assert shown(monkeypatch, capsys, terminal=False) == "".join(f"{line}\n" for line in lines)


def test_one_line_on_a_terminal_and_notes_above_it(monkeypatch, capsys):
    visible = [part.rsplit("\x1b[K", 1)[-1] for part in shown(monkeypatch, capsys, terminal=True).split("\n")]
    assert visible == ["a worker was lost", "step 50/100  heldout loss 1.5", TEXT, ""]


@pytest.mark.parametrize(
    ("seconds", "text"), [(59.4, "59 s"), (61, "1 min 1 s"), (3700, "1 h 1 min"), (180_000, "2 d 2 h")]
)
def test_times_have_two_units(seconds, text):
    assert duration(seconds) == text

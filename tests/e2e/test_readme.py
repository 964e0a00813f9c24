"""What the README shows works as printed."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from jobs.cli import COMMANDS, split_command
from jobs.spec import parse

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.M | re.S)
COMMAND_LINES = [
    line
    for kind, block in BLOCKS
    if kind == ""
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("tandem ")
]


def test_the_python_example_makes_images():
    (program,) = [block for kind, block in BLOCKS if kind == "python"]
    names: dict = {}
    exec(compile(program, "README.md", "exec"), names)
    pixels = names["pixels"]
    assert pixels.shape == (3, 3, 64, 64)
    assert torch.isfinite(pixels).all()
    assert 0 <= pixels.min() < pixels.max() <= 1


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_every_command_is_understood(line):
    import importlib

    name, rest = split_command(shlex.split(line, comments=True)[1:])
    command = COMMANDS[name]
    parse(getattr(importlib.import_module(command.module), command.spec), rest, f"tandem {name}")


def test_pictures_and_pages_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (Path(__file__).parents[2] / target).is_file(), target

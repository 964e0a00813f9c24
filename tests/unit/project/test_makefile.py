"""What the Makefile passes on to the commands that it runs."""

import os
import subprocess

from support.sources import ROOT


def test_compiled_modules_are_kept_even_if_the_environment_forbids_it():
    probe = "probe: ; @printenv PYTHONDONTWRITEBYTECODE || echo unset"
    command = ["make", "--no-print-directory", "--eval", probe, "probe"]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    assert subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True).stdout == "unset\n"

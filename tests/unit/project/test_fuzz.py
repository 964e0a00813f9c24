"""Damaged inputs of all readers of files: each is read or refused with a line, in seconds and within a gigabyte.

TANDEM_FUZZ_INPUTS=5000 makes more of them. `python tests/support/fuzz_readers.py NUMBER NUMBER+1` reads one again.
"""

import json
import os
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from support.fuzzing import Seed, inputs
from support.sources import PYTHONPATH

ROOT = Path(__file__).parents[3]
INPUTS = int(os.environ.get("TANDEM_FUZZ_INPUTS", "500"))
MAX_SECONDS, MAX_BYTES = 10, 1 << 30
START_SECONDS = 120  # of a process, until its first input


def run(start: int, stop: int) -> Iterator[dict]:
    """What became of each input; a process that dies or hangs ends with its input, and another goes on behind it."""
    environment = os.environ | {"PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    while start < stop:
        command = [sys.executable, str(ROOT / "tests" / "support" / "fuzz_readers.py"), str(start), str(stop)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            limit, about = START_SECONDS, {"number": start, "reader": "start"}
            while select.select([process.stdout], [], [], limit)[0] and (line := process.stdout.readline()):
                found, limit = json.loads(line), MAX_SECONDS
                if "number" in found:
                    about = found
                else:
                    yield about | found
                    about = {"number": about["number"] + 1, "reader": "next"}
            process.kill()
        assert about["reader"] != "start", "the undamaged inputs are not read"
        start = about["number"] + 1
        if start <= stop:
            yield about | {"outcome": f"exit code {process.returncode}", "seconds": limit, "bytes": 0}


def test_every_input_is_read_or_refused_with_a_line():
    found = list(run(0, INPUTS))
    assert [about["number"] for about in found] == list(range(INPUTS))
    wrong = [
        about
        for about in found
        if about["outcome"] not in ("read", "refused") or about["seconds"] > MAX_SECONDS or about["bytes"] > MAX_BYTES
    ]
    assert not wrong, f"{len(wrong)} of {INPUTS} inputs, such as {wrong[:5]}"
    slowest, largest = max(about["seconds"] for about in found), max(about["bytes"] for about in found)
    outcomes = Counter(about["outcome"] for about in found)
    print(f"{INPUTS} inputs: {dict(outcomes)}, {slowest} s and {largest / 1e6:.0f} MB at the most")
    assert outcomes["read"] > INPUTS / 20, "damage that is always seen at once reaches little"


def test_inputs_follow_from_their_number():
    seeds = [
        Seed("labels", ".jsonl", b'{"label": 1, "note": "a"}\n' * 4, "lines"),
        Seed("spec", ".yaml", b"a: 1", "yaml"),
    ]
    assert list(inputs(seeds, 0, 50))[20:] == list(inputs(seeds, 20, 50))


def test_a_process_that_ends_costs_its_own_input_alone(monkeypatch, tmp_path):
    """As of a crash in a library."""
    program = tmp_path / "tests" / "support" / "fuzz_readers.py"
    program.parent.mkdir(parents=True)
    program.write_text(
        "import json, os, sys\n"
        "for number in range(int(sys.argv[1]), int(sys.argv[2])):\n"
        "    print(json.dumps({'number': number, 'reader': 'a'}), flush=True)\n"
        "    os.abort() if number == 2 else None\n"
        "    print(json.dumps({'outcome': 'read', 'seconds': 0, 'bytes': 0}), flush=True)\n"
    )
    monkeypatch.setattr("test_fuzz.ROOT", tmp_path)
    assert [about["outcome"] for about in run(0, 5)] == ["read", "read", "exit code -6", "read", "read"]

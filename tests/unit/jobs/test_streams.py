"""Streams as shells hand them over: closed, or pipes whose reader has gone."""

import os
import subprocess
import sys

import pytest

from support.sources import PYTHONPATH


def tandem(*argv: str, **streams) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONPATH": PYTHONPATH}
    return subprocess.run([sys.executable, "-m", "tandem_jobs", *argv], env=env, **streams)


@pytest.mark.parametrize("argv", [["--help"], ["help", "genrate"]])
@pytest.mark.parametrize("cut", ["stdout", "stderr"])
def test_output_that_nobody_reads_ends_the_command_without_a_word(argv, cut):
    reader, writer = os.pipe()
    os.close(reader)
    other = {"stdout": "stderr", "stderr": "stdout"}[cut]
    ended = tandem(*argv, **{cut: writer, other: subprocess.PIPE})
    os.close(writer)
    prints_there = (argv == ["--help"]) == (cut == "stdout")
    assert ended.returncode == (141 if prints_there else 0 if argv == ["--help"] else 2)
    assert b"Traceback" not in (ended.stderr if cut == "stdout" else ended.stdout)
    assert not prints_there or (ended.stderr or ended.stdout or b"") == b""


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_change_nothing_else(closed):
    command = f"exec {sys.executable} -m tandem_jobs genrate {closed}"
    env = os.environ | {"PYTHONPATH": PYTHONPATH}
    ended = subprocess.run(["sh", "-c", command], env=env, capture_output=True)
    assert ended.returncode == 2
    assert ended.stdout == b""
    assert ended.stderr.startswith(b"error: expected a command") or "2>&-" in closed


def test_a_closed_stream_takes_no_file_of_ours():
    code = (
        "import os; from tandem_jobs.streams import usable_streams as u; "
        "c = u(); c.__enter__(); print(os.open('.', 0) > 2)"
    )
    env = os.environ | {"PYTHONPATH": PYTHONPATH}
    ended = subprocess.run(["sh", "-c", f'exec {sys.executable} -c "{code}" 2>&-'], env=env, capture_output=True)
    assert ended.stdout == b"True\n"


def test_a_broken_pipe_of_something_else_is_no_cut_output():
    from tandem_jobs.streams import usable_streams

    with pytest.raises(BrokenPipeError), usable_streams():
        raise BrokenPipeError

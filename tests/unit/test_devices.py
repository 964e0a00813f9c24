"""Memory of this machine: of its cards as the driver tells it, of the host as the container may use it."""

import os
from pathlib import Path

import pytest

from cluster import devices

HOST = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.fixture
def driver(tmp_path: Path, monkeypatch):
    """Puts a program of these lines in the place of nvidia-smi."""

    def install(*lines: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text("\n".join(["#!/bin/sh", *lines]))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    return install


def test_cards_are_those_of_the_driver(driver):
    driver('[ "$1" = --query-gpu=memory.total ] && printf "24564\\n81559\\n"')
    assert devices.memory_here().cards == (24564 << 20, 81559 << 20)


@pytest.mark.parametrize("lines", [["exit 9"], ["echo 'No devices were found'"]], ids=["fails", "finds none"])
def test_a_driver_without_cards_is_none(driver, lines):
    driver(*lines)
    assert devices.memory_here().cards == ()


@pytest.mark.parametrize(("limit", "host"), [("1000000\n", 1000000), ("max\n", HOST), (f"{2 * HOST}\n", HOST)])
def test_the_host_has_what_its_container_may_use(tmp_path, monkeypatch, limit, host):
    (tmp_path / "memory.max").write_text(limit)
    monkeypatch.setattr(devices, "CGROUP_LIMIT", tmp_path / "memory.max")
    assert devices.memory_here().host == host

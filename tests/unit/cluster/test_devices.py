"""Memory of this machine: of its cards as the driver tells it, of the host as the container may use it."""

import os
from pathlib import Path

import pytest

from tandem_cluster import devices

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
    driver('[ "$1" = --query-gpu=memory.total,mig.mode.current ] && printf "24564, [N/A]\\n81559, Disabled\\n"')
    assert devices.memory_here().cards == (24564 << 20, 81559 << 20)


def test_of_a_divided_card_the_parts_count(driver):
    """A replica has one of them."""
    driver(
        'if [ "$1" = -L ]; then',
        "echo 'GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6)'",
        "echo '  MIG 3g.20gb     Device  0: (UUID: MIG-c6d4f1ef)'",
        "echo '  MIG 1g.5gb+me   Device  1: (UUID: MIG-cba663e8)'",
        "echo 'GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d7)'",
        "else printf '40960, Enabled\\n40960, Disabled\\n'; fi",
    )
    assert devices.memory_here().cards == (40960 << 20, 20 * 10**9, 5 * 10**9)


@pytest.mark.parametrize("lines", [["exit 9"], ["echo 'No devices were found'"]], ids=["fails", "finds none"])
def test_a_driver_without_cards_is_none(driver, lines):
    driver(*lines)
    assert devices.memory_here().cards == ()


@pytest.mark.parametrize(("limit", "host"), [("1000000\n", 1000000), ("max\n", HOST), (f"{2 * HOST}\n", HOST)])
def test_the_host_has_what_its_container_may_use(tmp_path, monkeypatch, limit, host):
    (tmp_path / "memory.max").write_text(limit)
    monkeypatch.setattr(devices, "CGROUP_LIMIT", tmp_path / "memory.max")
    assert devices.memory_here().host == host

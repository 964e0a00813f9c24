"""Who may reach the endpoint: its names, and what Ray's processes inherit of keys and sites."""

from __future__ import annotations

import os
import socket

import pytest
from ray._common.utils import import_attr

from tandem_jobs.options.spec import parse
from tandem_jobs.serve_access import allowed_hosts, prepare_environment
from tandem_jobs.serve_options import ServeSpec
from tandem_workers.endpoint.keys import MIN_KEY, digest, key_digests
from tandem_workers.endpoint.proxy import HOOK, ORIGINS, middlewares


@pytest.mark.parametrize(
    ("argv", "keys", "allowed", "refused"),
    [
        ((), "", {"localhost", "127.0.0.1", "::1"}, {"*", "<ip>"}),
        (("--host", "10.0.0.7"), "", {"localhost", "10.0.0.7"}, {"*", "<ip>"}),
        (("--host", "0.0.0.0"), "", {"localhost", "<ip>", socket.gethostname()}, {"*"}),
        (("--allowed-hosts", "a.example"), "", {"localhost", "a.example"}, {"*"}),
        ((), "k" * MIN_KEY, {"*"}, set()),  # a page whose name was rebound has no key
        (("--allowed-hosts", "a.example"), "k" * MIN_KEY, {"localhost", "a.example"}, {"*"}),
    ],
)
def test_the_server_answers_to_its_own_names_alone_unless_keys_protect_it(argv, keys, allowed, refused, monkeypatch):
    if keys:
        monkeypatch.setenv("TANDEM_API_KEYS", keys)
    found = set(allowed_hosts(parse(ServeSpec, argv, "tandem serve")))
    assert found >= allowed and not found & refused


def test_processes_inherit_digests_and_what_serves_proxies_run(monkeypatch):
    for name in (HOOK, ORIGINS, "TANDEM_API_KEY_DIGESTS"):
        monkeypatch.setenv(name, "")  # restored after the test
        monkeypatch.delenv(name)
    monkeypatch.setenv("TANDEM_API_KEYS", "k" * MIN_KEY)
    spec = parse(ServeSpec, ("--cors-origins", "https://a.example/"), "tandem serve")
    variables = prepare_environment(spec)
    assert "k" * MIN_KEY not in str(os.environ)
    assert key_digests() == (digest("k" * MIN_KEY),)
    assert os.environ[ORIGINS] == "https://a.example"
    assert import_attr(os.environ[HOOK]) is middlewares
    assert variables == {name: os.environ[name] for name in (HOOK, ORIGINS, "TANDEM_API_KEY_DIGESTS")}

"""Options of `tandem serve`: what does not go together is refused in one line, before anything is started."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tandem.errors import InputError, OutputError, PlacementError
from tandem_cluster.nodes import ACCELERATOR_LABEL, Node
from tandem_cluster.placement import Placement
from tandem_cluster.profile_file import Profile, StageTime, write_profile
from tandem_cluster.server import find_port
from tandem_cluster.session import Session
from tandem_jobs.options.spec import parse
from tandem_jobs.serve import app, describe, make_app, run
from tandem_jobs.serve_options import ServeSpec
from tandem_jobs.serve_placement import choose_placement, replica_ranges
from tandem_workers.endpoint.keys import MIN_KEY
from tandem_workers.models.model_set import resolve_models

COLOCATED = ("--placement", "colocated")
SIMULATED = Session(num_nodes=1, num_cpus=8, num_gpus=4, simulated=True, address="none")


def spec_of(*argv: str) -> ServeSpec:
    return parse(ServeSpec, argv, "tandem serve")


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (("--max-n", "20", "--max-images", "10"), "expected --max-n of at most --max-images 10, got 20"),
        (("--store", "folder"), "--store: expected s3://bucket/prefix, got 'folder'"),
        (("--port", "65536"), "--port: expected a whole number from 0 to 65535, got '65536'"),
        (("--batch", "0"), "--batch: expected a whole number above 0, got '0'"),
        (("--drafters", "0"), "--drafters: expected a whole number above 0, got '0'"),
        (("--batch-wait-ms", "-1"), "--batch-wait-ms: expected a number from 0 to 1000, got '-1'"),
        (("--timeout-s", "0"), "--timeout-s: expected a number above 0, got '0'"),
        (
            ("--url-seconds", "604801"),
            "--url-seconds: expected a whole number above 0 and of at most 604800, got '604801'",
        ),
        *(
            (
                ("--public-url", url),
                f"--public-url: expected http://HOST or https://HOST, with or without a path, got {url!r}",
            )
            for url in ("a.example", "ftp://a.example", "https://", "https://a.example/?x=1")
        ),
        (
            ("--placement", "disjoint"),
            "--placement: expected 'auto', 'split', 'colocated' or 'cpu', got 'disjoint'",
        ),
        (("--drafters-on", "a=b"), "expected --drafters-on and --refiners-on together, got one of them"),
        (
            ("--drafters-on", "a", "--refiners-on", "a=c"),
            "--drafters-on: expected NAME=VALUE of a Ray node label, got 'a'",
        ),
        (
            ("--drafters-on", "a=b", "--refiners-on", "a=c", "--placement", "split", "--drafters", "2"),
            "expected --placement split or colocated, --drafters and --refiners with --drafters-on",
        ),
        (
            (*COLOCATED, "--drafters", "2", "--refiners", "3", "--drafters-on", "a=b", "--refiners-on", "a=b"),
            "colocated: expected as many drafters as refiners, got 2 and 3",
        ),
        (
            (*COLOCATED, "--drafters", "2", "--refiners", "2", "--drafters-on", "a=b", "--refiners-on", "a=c"),
            "colocated: expected the same --drafters-on and --refiners-on, got a=b and a=c",
        ),
        *(
            (
                ("--profile", "a.json", *more),
                "expected --profile without --placement cpu, --drafters and --refiners",
            )
            for more in (("--drafters", "1"), ("--refiners", "1"), ("--placement", "cpu"))
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(argv, line):
    with pytest.raises(InputError) as caught:
        spec_of(*argv)
    assert str(caught.value).splitlines() == [line]
    assert caught.value.hint == "tandem serve --help shows every option"


def test_a_public_address_has_no_final_slash():
    assert spec_of("--public-url", "https://a.example/images/").public_url == "https://a.example/images"


def test_the_defaults_listen_to_this_machine_alone():
    spec = spec_of()
    assert (spec.host, spec.port, spec.cors_origins, spec.store) == ("127.0.0.1", 8000, (), None)
    assert spec_of("--profile", "a.json", "--placement", "split").profile == ("a.json",)


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ({"max_n": 20, "max_images": 10}, "expected --max-n of at most --max-images 10, got 20"),
        ({"batch": 0}, "--batch: expected a whole number above 0, got '0'"),
        ({"bach": 8}, "--bach: "),
        ({"port": 9000}, "--port: "),
    ],
)
def test_a_config_file_is_checked_as_the_flags_are(args, line):
    """Where to listen is said elsewhere in a file for `serve run`."""
    with pytest.raises(InputError) as caught:
        app(args)
    (found,) = str(caught.value).splitlines()
    assert found.startswith(line)


@pytest.mark.parametrize(
    ("argv", "gpus", "simulated", "placed"),
    [
        ((), 1, False, ("colocated", 1, 1)),
        ((), 4, False, ("colocated", 4, 4)),  # as the planner and a job's auto have it
        (("--drafters", "3"), 4, False, ("split", 3, 1)),
        (COLOCATED, 4, False, ("colocated", 4, 4)),
        ((*COLOCATED, "--drafters", "2"), 4, False, ("colocated", 2, 2)),
        ((*COLOCATED, "--refiners", "2"), 4, True, ("colocated", 2, 2)),
        (COLOCATED, 4, True, ("colocated", 1, 1)),  # simulated GPUs are cores of a CPU
    ],
)
def test_both_models_are_on_each_of_equal_gpus_and_numbers_split_them(argv, gpus, simulated, placed):
    found = choose_placement(spec_of(*argv), Session(1, 8, gpus, simulated, "here"), 5)
    assert (found.mode, found.num_drafters, found.num_refiners) == placed


def test_colocated_takes_as_many_drafters_as_refiners_and_no_more_than_there_are_gpus():
    four = Session(1, 8, 4, False, "here")
    with pytest.raises(PlacementError, match="colocated: expected as many drafters as refiners, got 2 and 1"):
        choose_placement(spec_of(*COLOCATED, "--drafters", "2", "--refiners", "1"), four, 5)
    with pytest.raises(PlacementError, match="expected at most 4 GPUs, got 5 replicas"):
        choose_placement(spec_of(*COLOCATED, "--drafters", "5"), four, 5)


@pytest.mark.parametrize("autoscale", [False, True])
def test_a_colocated_replica_takes_a_whole_gpu_of_its_nodes_though_none_is_there_yet(autoscale):
    empty = Session(num_nodes=1, num_cpus=0, num_gpus=0, simulated=False, address="none")
    numbers = (*COLOCATED, "--drafters", "3", "--refiners", "3", *(("--autoscale",) if autoscale else ()))
    spec = spec_of(*numbers, "--drafters-on", "tandem/role=both", "--refiners-on", "tandem/role=both", "--batch", "8")
    placement = choose_placement(spec, empty, 5)
    both, none = replica_ranges(spec, placement)
    assert none is None
    assert (both.least, both.most, both.target_requests) == (1 if autoscale else 3, 3, 16.0)
    options = both.options(8)["ray_actor_options"]
    assert options == {"num_cpus": 0.0, "num_gpus": 1.0, "label_selector": {"tandem/role": "both"}}
    assert placement.describe() == "placement colocated: 3 x (drafter + refiner), one GPU each (as asked)"


def test_a_key_that_could_be_guessed_ends_the_start(monkeypatch):
    monkeypatch.setenv("TANDEM_API_KEYS", "hunter2")
    with pytest.raises(InputError, match="TANDEM_API_KEYS"):
        make_app(spec_of(), SIMULATED)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_that_somebody_listens_on_is_refused_with_a_way_out(taken_port):
    with pytest.raises(InputError, match=rf"cannot listen on 127\.0\.0\.1:{taken_port}: .*in use") as caught:
        find_port("127.0.0.1", taken_port)
    assert caught.value.hint == "--port 0 takes a free one"


def test_an_address_that_is_not_this_machines_is_refused():
    with pytest.raises(InputError, match=r"cannot listen on 192\.0\.2\.1:0"):  # reserved for documentation
        find_port("192.0.2.1", 0)


def test_a_free_port_is_taken_as_it_is_and_0_finds_one():
    port = find_port("127.0.0.1", 0)
    assert 1024 <= port <= 65535
    assert find_port("127.0.0.1", port) == port


@pytest.mark.parametrize(
    ("host", "keys", "warned"), [("0.0.0.0", "", True), ("0.0.0.0", "k" * MIN_KEY, False), ("127.0.0.1", "", False)]
)
def test_a_server_for_every_network_without_keys_is_warned_of(host, keys, warned, monkeypatch, capsys, taken_port):
    """A port in use ends the run before anything is started."""
    if keys:
        monkeypatch.setenv("TANDEM_API_KEYS", keys)
    with pytest.raises(InputError, match="cannot listen"):
        run(spec_of("--host", host, "--port", str(taken_port)))
    assert ("warning: 0.0.0.0 can be reached from other machines" in capsys.readouterr().err) is warned


@pytest.mark.parametrize(
    ("argv", "error", "message"),
    [
        (("--placement", "split", "--drafters", "4", "--refiners", "1"), PlacementError, "expected at most 4 GPUs"),
        (("--draft-steps", "7"), InputError, "--draft-steps: expected 1 to 6"),
        (("--top-k", "1", "--temperatures", "0"), InputError, "--temperatures: expected one or more values >= 0.01"),
        (("--drafter", "d30"), InputError, "d30 is a preset, which has no weights"),
        (("--drafter", "none.pth"), InputError, "none.pth"),
    ],
)
def test_what_cannot_be_served_is_said_before_anything_is_loaded(argv, error, message):
    with pytest.raises(error) as caught:
        make_app(spec_of(*argv), SIMULATED)
    assert message in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_store_that_cannot_be_written_is_said_before_anything_is_loaded(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody is there
    with pytest.raises(OutputError) as caught:
        make_app(spec_of("--store", "s3://bucket/served"), SIMULATED)
    assert "bucket" in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_the_model_is_named_after_its_files_unless_it_has_a_name(tiny_models):
    embedded = describe(spec_of(), resolve_models("embedded", "embedded", "embedded", False))
    assert (embedded.model_id, embedded.size, embedded.draft_steps) == ("tandem-embedded", "64x64", 5)
    assert len(embedded.class_names) == 12 and set(embedded.sha256) == {"drafter", "refiner", "vqvae"}
    files = tuple(part for role, path in tiny_models.items() for part in (f"--{role}", path))
    models = resolve_models(*tiny_models.values(), random_weights=False)
    assert describe(spec_of(*files), models).model_id == "tandem-drafter-refiner"
    assert describe(spec_of(*files, "--model-id", "ants", "--draft-steps", "1"), models).model_id == "ants"


def test_the_planner_gives_each_role_one_kind_of_gpu_and_its_nodes(tmp_path, monkeypatch):
    def profile(kind: str, draft_s: float, refine_s: float) -> str:
        times = [StageTime(stage="draft", draft_steps=5, batch=8, seconds=draft_s)]
        times += [StageTime(stage="refine", draft_steps=5, batch=8, seconds=refine_s)]
        times += [StageTime(stage="decode", batch=8, seconds=0.01)]
        path = tmp_path / f"{kind}.json"
        write_profile(Profile(name=kind, kind=kind, num_scales=7, stages=tuple(times)), path)
        return str(path)

    nodes = [Node("a", 1, 1, {ACCELERATOR_LABEL: "H100"}), Node("b", 2, 2, {ACCELERATOR_LABEL: "L4"})]
    monkeypatch.setattr("tandem_jobs.serve_placement.living_nodes", lambda: nodes)
    profiles = f"{profile('h100', 0.1, 0.1)},{profile('l4', 1.0, 0.2)}"
    spec = spec_of("--profile", profiles, "--autoscale")
    placement = choose_placement(spec, Session(2, 8, 3, False, "here"), 5)
    draft, refine = replica_ranges(spec, placement)
    asked = [scale.options(8)["ray_actor_options"] for scale in (draft, refine)]
    assert asked == [
        {"num_cpus": 0.0, "num_gpus": 1.0, "label_selector": {ACCELERATOR_LABEL: kind}} for kind in ("H100", "L4")
    ]
    assert (draft.most, refine.most) == (1, 2)
    monkeypatch.setattr("tandem_jobs.serve_placement.living_nodes", lambda: [nodes[1]])
    for more in ((), COLOCATED):  # on equal cards both on each is the best, and may be asked for
        found = choose_placement(
            spec_of("--profile", profiles.partition(",")[2], *more), Session(1, 8, 2, False, ""), 5
        )
        assert (found.mode, found.num_drafters, found.num_refiners) == ("colocated", 2, 2)


@pytest.mark.parametrize(
    ("mode", "drafters", "refiners", "targets", "gpus", "cpus"),
    [
        ("split", 2, 1, (12.0, 8.0), 1.0, 0.0),
        ("split", 1, 3, (32.0, 8.0), 1.0, 0.0),
        ("cpu", 1, 1, (16.0, 8.0), 0.0, 3.0),
    ],
)
def test_replicas_get_their_devices_and_grow_in_the_ratio_of_the_placement(
    mode, drafters, refiners, targets, gpus, cpus
):
    """A request is in hand at its drafter while a refiner works on it: drafters hold D + R where refiners hold R."""
    spec = spec_of("--batch", "8", "--threads", "3")
    placement = Placement(mode, drafters, refiners, "as asked")
    draft, refine = replica_ranges(spec, placement)
    assert (draft.target_requests, refine.target_requests) == targets
    assert draft.target_requests * drafters / (refine.target_requests * refiners) == (drafters + refiners) / refiners
    for scale, count in ((draft, drafters), (refine, refiners)):
        assert (scale.num_gpus, scale.num_cpus, scale.least, scale.most) == (gpus, cpus, count, count)
        assert scale.options(8)["num_replicas"] == count
    grows = replica_ranges(spec_of("--autoscale"), placement)
    assert [(scale.least, scale.most) for scale in grows] == [(1, drafters), (1, refiners)]
    if drafters > 1:
        options = grows[0].options(8)
        assert "num_replicas" not in options
        limits = options["autoscaling_config"]
        assert (limits["min_replicas"], limits["max_replicas"]) == (1, drafters)
        assert limits["target_ongoing_requests"] == targets[0] < options["max_ongoing_requests"]


def test_labels_send_each_role_to_its_nodes_though_none_of_them_is_there_yet():
    empty = Session(num_nodes=1, num_cpus=0, num_gpus=0, simulated=False, address="none")
    numbers = ("--placement", "split", "--drafters", "3", "--refiners", "2", "--autoscale")
    spec = spec_of(*numbers, "--drafters-on", "tandem/role=drafter", "--refiners-on", "tandem/role=refiner")
    placement = choose_placement(spec, empty, 5)
    assert (placement.mode, placement.num_drafters, placement.num_refiners) == ("split", 3, 2)
    drafters, refiners = replica_ranges(spec, placement)
    assert (drafters.nodes, refiners.nodes) == ({"tandem/role": "drafter"}, {"tandem/role": "refiner"})
    assert (drafters.num_gpus, refiners.num_gpus) == (1, 1)

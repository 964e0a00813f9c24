"""What `tandem submit` checks, sends and makes of a job's log, without a cluster."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import requests

from tandem.errors import InputError, JobError, OutputError
from tandem_cluster import submission
from tandem_jobs import cli
from tandem_jobs.bench.bench_pipeline import BenchPipelineSpec
from tandem_jobs.evaluate import EvaluateSpec
from tandem_jobs.generate import GenerateSpec
from tandem_jobs.options.spec import as_flags, parse
from tandem_jobs.options.yaml_file import load_yaml
from tandem_jobs.submit import JobLog
from tandem_jobs.submit_files import MAX_SENT_BYTES, read_command, read_variables, send_files
from tandem_workers.storage.local_store import LocalStore

JOB = ["generate", "--classes", "all", "--images", "4"]


@pytest.mark.parametrize(
    "argv",
    [
        [*JOB, "--out", "s3://b/p"],
        [*JOB, "--out", "/a b", "--temperatures", "1.1,1.0", "--keep-tokens", "--placement", "split", "--top-p", "0.9"],
        ["generate", "--labels", "/rows, all.csv", "--out=-x/y", "--cfg", "0", "--profile", "/a.json,paper-l20"],
        ["verify", "/data/out"],
        ["evaluate", "s3://b/x", "--reference", "/real", "--features", "/clip.pt", "--card", "--sample", "100"],
        ["tokenize", "s3://b/x", "--out", "/y", "--patch-nums", "1,2,4", "--views", "2", "--augment", "affine"],
        ["finetune", "refiner", "--tokens", "s3://b/t", "--out", "/y", "--draft-steps", "3", "--base-lr", "1e-4"],
        ["bench", "pipeline", "--drafters", "2", "--refiners", "1"],
        ["bench", "store", "--out", "s3://b/x", "--codec", "webp"],
    ],
)
def test_flags_give_the_options_again(argv):
    name, rest = cli.split_command(argv)
    spec = cli.parse_options(name, rest)
    assert cli.parse_options(name, as_flags(spec)) == spec


def test_variables_and_spec_file_become_flags(tmp_path, monkeypatch):
    monkeypatch.setenv("TANDEM_SEED", "7")
    (tmp_path / "job.yaml").write_text("per_class: 3\nkeep_tokens: true\nbatch: 8\n")
    argv = ["generate", "--spec", str(tmp_path / "job.yaml"), "--classes", "face", "--out", "s3://b/p", "--batch", "4"]
    name, spec = read_command(argv)
    monkeypatch.delenv("TANDEM_SEED")
    flags = as_flags(spec)
    assert "--spec" not in flags
    again = parse(GenerateSpec, flags, "tandem generate")
    assert (again.per_class, again.keep_tokens, again.batch, again.seed) == (3, True, 4, 7)
    assert name == "generate"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "expected a command after --, got none"),
        (["paint"], "expected a command"),
        (["serve"], "expected a command that can be submitted .*, got serve"),
        (
            [*JOB, "--out", "out"],
            "--out: expected s3://bucket/prefix or an absolute path that all nodes share, got out",
        ),
        ([*JOB, "--out", "s3://b/p", "--address", "auto"], "expected --address before --"),
        ([*JOB, "--out", "s3://key:word@b/p"], "--out: expected an address without user and password"),
        ([*JOB, "--out", "s3://b/p", "--batch", "0"], "--batch: expected"),
        (["refine", "--drafts", "d", "--out", "s3://b/p"], "--drafts: expected s3://bucket/prefix or an absolute path"),
        (["evaluate", "emoji"], "DATASET: expected s3://bucket/prefix or an absolute path"),
        (["train", "var", "--tokens", "tokens", "--out", "/y"], "--tokens: expected s3://bucket/prefix or an absolute"),
        (["tokenize", "pictures", "--out", "/y"], "DATA: expected s3://bucket/prefix or an absolute path"),
        (["evaluate", "/emoji", "--reference", "real"], "--reference: expected s3://bucket/prefix or an absolute path"),
    ],
)
def test_a_command_that_could_not_work_there_is_refused_here(argv, message):
    with pytest.raises(InputError, match=message):
        read_command(argv)


def test_options_of_the_submission_do_not_reach_the_command_inside(monkeypatch, tmp_path, capsys):
    (tmp_path / "job.yaml").write_text("classes: all\nimages: 4\n")
    monkeypatch.setenv("TANDEM_ADDRESS", "http://head:8265")
    monkeypatch.setenv("TANDEM_SPEC", str(tmp_path / "job.yaml"))
    assert read_command(["generate", "--out", "s3://b/p"])[1].images == 4
    assert cli.parse_options("submit", []).address == "http://head:8265"
    assert os.environ["TANDEM_ADDRESS"] == "http://head:8265"


def test_files_with_relative_paths_are_sent(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text("label\n0\n")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "p.json").write_text(name)
    sent = tmp_path / "sent"
    sent.mkdir()
    models = ["--drafter", "/models/d.pth", "--refiner", "s3://m/r.pth", "--profile", "a/p.json,paper-l20,b/p.json"]
    spec = parse(GenerateSpec, ["--labels", "rows.csv", "--out", "s3://b/p", *models], "")
    moved = send_files(spec, sent)
    assert (moved.labels, moved.drafter, moved.refiner, moved.vqvae) == (
        "labels-0-rows.csv",
        "/models/d.pth",
        "s3://m/r.pth",
        "embedded",
    )
    assert moved.profile == ("profile-0-p.json", "paper-l20", "profile-2-p.json")
    assert {path.name: path.read_text() for path in sent.iterdir()} == {
        "labels-0-rows.csv": "label\n0\n",
        "profile-0-p.json": "a",
        "profile-2-p.json": "b",
    }
    assert send_files(parse(BenchPipelineSpec, [], ""), sent) == parse(BenchPipelineSpec, [], "")
    network = send_files(parse(EvaluateSpec, ["/set", "--features", "a/p.json", "--inception", "b/p.json"], ""), sent)
    assert (network.features, network.inception) == ("features-0-p.json", "inception-0-p.json")
    assert send_files(parse(EvaluateSpec, ["/set", "--features", "embedded"], ""), sent).features == "embedded"


def test_missing_and_large_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--classes", "all", "--images", "4", "--out", "s3://b/p"]
    with pytest.raises(InputError, match=r"--drafter: no such file here: d\.pth"):
        send_files(parse(GenerateSpec, [*options, "--drafter", "d.pth"], ""), tmp_path)
    (tmp_path / "a,b.csv").write_text("label\n0\n")
    with pytest.raises(InputError, match=r"--labels: expected a file name without commas, got a,b\.csv"):
        send_files(parse(GenerateSpec, ["--labels", "a,b.csv", "--out", "s3://b/p"], ""), tmp_path)
    with open("d.pth", "wb") as file:
        os.truncate(file.fileno(), MAX_SENT_BYTES + 1)
    with pytest.raises(InputError, match="at most 100 MiB of files to send with the job"):
        send_files(parse(GenerateSpec, [*options, "--drafter", "d.pth"], ""), tmp_path)


def test_variables_of_the_job(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://here")
    assert read_variables(["AWS_ENDPOINT_URL", "A=b=c"]) == {"AWS_ENDPOINT_URL": "http://here", "A": "b=c"}
    with pytest.raises(InputError, match="expected a variable that is set here, or NAME=VALUE, got NOT_SET_HERE"):
        read_variables(["NOT_SET_HERE"])
    with pytest.raises(InputError, match="expected NAME or NAME=VALUE, got '1A'"):
        read_variables(["1A=b"])


SECRETS = [
    "AWS_SECRET_ACCESS_KEY",
    "HF_TOKEN",
    "TANDEM_API_KEYS",
    "db_password",
    "AWS_ACCESS_KEY_ID",
    "DB_PASS",
    "GH_PAT",
]


@pytest.mark.parametrize("name", SECRETS)
def test_names_of_secrets_never_enter_a_runtime_environment(name):
    for variables, base in (({name: "x"}, None), ({}, {"env_vars": {name: "x"}})):
        with pytest.raises(InputError, match=f"expected no secrets .*; got {name}"):
            submission.runtime_env(variables, base)


@pytest.mark.parametrize(
    ("variables", "base", "named"),
    [
        ({"HTTPS_PROXY": "http://user:word@proxy:1"}, {}, "HTTPS_PROXY"),
        ({}, {"pip": {"packages": ["x"], "pip_install_options": ["--index-url=https://u:p@host/simple"]}}, "pip"),
    ],
)
def test_addresses_with_a_password_never_enter_it(variables, base, named):
    with pytest.raises(InputError, match=f"expected no secrets .*; got {named}") as caught:
        submission.runtime_env(variables, base)
    assert "word" not in str(caught.value)


def test_addresses_without_one_do():
    plain = {"AWS_ENDPOINT_URL": "http://host:1/a@b", "PATHS": "/a:/b"}
    assert submission.runtime_env(plain, {"pip": ["git+https://host/x@v1"]})["env_vars"] == plain


def test_the_code_of_this_machine_is_sent():
    env = submission.runtime_env({"A": "1"}, {"pip": ["x"], "env_vars": {"B": "2"}, "excludes": ["*.tmp"]}, "/folder")
    assert [Path(module).name for module in env["py_modules"]] == [
        "tandem",
        "tandem_workers",
        "tandem_jobs",
        "tandem_cluster",
    ]
    assert all((Path(module) / "__init__.py").is_file() for module in env["py_modules"])
    assert env["env_vars"] == {"A": "1", "B": "2"}
    assert (env["pip"], env["working_dir"]) == (["x"], "/folder")
    assert {"__pycache__", "*.tmp"} <= set(env["excludes"])


def test_a_runtime_environment_file_is_checked(tmp_path):
    path = tmp_path / "env.yaml"
    path.write_text("")
    assert load_yaml("--runtime-env", path) == {}
    for text, message in (("- a", "--runtime-env: expected values by name .*, got a list"), ("a: [", "is not YAML")):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            load_yaml("--runtime-env", path)
    with pytest.raises(InputError, match="cannot read"):
        load_yaml("--runtime-env", tmp_path / "no.yaml")


def test_what_matters_of_a_log(capsys):
    log = JobLog(show_all=False)
    summary = {"started_at": 110.0, "start_up_s": {"driver": 2.0, "cluster": 0.5}}
    lines = [
        "{not json",
        "hint: of nothing",
        "error: wrong:",
        "  a: there 1",
        "hint: do",
        "  later",
        json.dumps(summary),
    ]
    for line in lines:
        log.show(line)
    assert (log.error, log.hint, log.summary) == ("wrong:\n  a: there 1", "do", summary)
    assert log.start_up(began=105.0, sent=108.5) == {"submit": 3.5, "job_start": 1.5, "driver": 2.0, "cluster": 0.5}
    assert capsys.readouterr().err == ""
    whole = JobLog(show_all=True)
    whole.show("a line")
    assert capsys.readouterr().err == "a line\n"
    assert whole.start_up(0, 0) == {}


def test_a_folder_that_nodes_do_not_share_is_noticed(tmp_path):
    store = LocalStore(str(tmp_path / "out"))
    store.put_once("job.json", b"{}")
    store.remember_job("job.json")
    store.check_shared()
    elsewhere = pickle.loads(pickle.dumps(store))
    elsewhere.root = tmp_path / "another disk"
    with pytest.raises(OutputError, match=r"expected a directory that all nodes share, .* has no job\.json in .*disk"):
        elsewhere.check_shared()
    (tmp_path / "another disk").mkdir()
    (tmp_path / "another disk" / "job.json").write_text("{1}")
    with pytest.raises(OutputError, match=r"has another job\.json in"):
        elsewhere.check_shared()


@pytest.mark.parametrize(("in_job", "refused"), [(True, True), (False, False)])
def test_a_submitted_job_has_no_place_of_its_own(in_job, refused, monkeypatch):
    if in_job:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    argv = ["--classes", "all", "--images", "4", "--out", "out"]
    if refused:
        with pytest.raises(InputError, match="Ray removes the folder in which a submitted job runs"):
            parse(GenerateSpec, argv, "")
    else:
        assert parse(GenerateSpec, argv, "").out == "out"


class Refusing:
    """A client whose cluster answers with an error."""

    def __init__(self, error):
        self.error = error

    def submit_job(self, **_):
        raise self.error

    def get_job_status(self, job):
        raise self.error


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (requests.exceptions.ConnectionError("gone"), JobError, "cannot submit the job: gone"),
        (RuntimeError("Request failed with status code 500: no agent"), JobError, "no agent"),
        (
            RuntimeError("Request failed with status code 500: Traceback\n  x\nValueError: Job a already exists."),
            InputError,
            "cannot submit the job: ValueError: Job a already exists",
        ),
        (ValueError("py_modules"), InputError, "cannot submit the job: py_modules"),
    ],
)
def test_a_cluster_that_fails_is_told_from_a_wrong_request(error, raised, said):
    with pytest.raises(raised, match=said) as caught:
        submission.submit(Refusing(error), "x", {}, {}, None)
    assert type(caught.value) is raised


def test_a_job_that_cannot_be_stopped_is_said_to_go_on():
    with pytest.raises(JobError, match="cannot stop job a, which may still be running: gone"):
        submission.stop(Refusing(requests.exceptions.ConnectionError("gone")), "a")

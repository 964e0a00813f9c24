"""Submits jobs to a cluster that has Ray and our dependencies but not our code, and follows them to their outcome."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from tandem.errors import InputError, JobError, PlacementError
from tandem_cluster import PACKAGES
from tandem_cluster.secrets import SECRET, has_user

NOT_SENT = ["__pycache__", "*.pyc"]
CHATTY = (  # loggers that report every package, its size and the socket
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
POLL_EVERY_S = 0.5
ANSWER_S = 60.0
LOST_S = 60.0  # a cluster that is unreachable for longer counts as lost
LAST_LINES_S = 5.0  # the end of a job's log may arrive after the job's end


@dataclass(frozen=True)
class Outcome:
    """The end of a job."""

    status: str  # SUCCEEDED, FAILED or STOPPED
    exit_code: int | None  # of the driver, None if it was killed or never started
    message: str


def runtime_env(
    variables: Mapping[str, str], base: Mapping[str, Any] | None = None, working_dir: str | None = None
) -> dict[str, Any]:
    """A Ray runtime environment with a copy of the code that runs here, whether installed or not.

    Args:
        variables: environment variables of the job. Secrets raise InputError, because Ray shows the values.
        base: a runtime environment to add to, such as one with `pip`.
        working_dir: folder that is copied to the job's working directory.
    """
    env = dict(base or {})
    ours = [str(package_folder(name)) for name in PACKAGES]
    env["py_modules"] = [*ours, *(env.get("py_modules") or ())]
    env["excludes"] = [*NOT_SENT, *(env.get("excludes") or ())]
    env["env_vars"] = {**(env.get("env_vars") or {}), **variables}
    if working_dir is not None:
        env["working_dir"] = working_dir
    check_secrets(env)
    return env


def check_secrets(env: Mapping[str, Any]) -> None:
    """Raise InputError for anything that looks like a secret: a variable's name, an address with user or password."""
    found = [name for name in env["env_vars"] if SECRET.search(name) or has_user(env["env_vars"][name])]
    found += [name for name, value in env.items() if name != "env_vars" and has_user(value)]
    if found:
        raise InputError(
            f"expected no secrets in a job's environment, which Ray shows to all who can see the job; got {found[0]}",
            "give the nodes themselves the credentials: their cloud identity, or variables set before 'ray start'",
        )


def package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec and spec.submodule_search_locations, name
    return Path(next(iter(spec.submodule_search_locations)))


class Client(JobSubmissionClient):
    """Ray's client with a time-out."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        return super()._do_request(method, endpoint, **{"timeout": ANSWER_S, **options})


@contextmanager
def asking(what: str) -> Iterator[None]:
    """Context manager: turns connection and server errors into JobError, and errors of the request into InputError."""
    try:
        yield
    except (requests.exceptions.RequestException, AuthenticationError) as error:
        raise JobError(f"cannot {what}: {first_line(error)}") from error
    except (RuntimeError, ValueError, TypeError) as error:
        inside = re.search(r"status code 5\d\d", str(error)) and "ValueError" not in str(error)
        raise (JobError if inside else InputError)(f"cannot {what}: {reason(error)}") from error


def connect(address: str | None) -> Client:
    """A client of the cluster at the http:// address of its dashboard, else at RAY_ADDRESS, else on this machine.

    Raises PlacementError if no cluster answers, or if it refuses us.
    """
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    if address is not None:  # in Ray the environment would override the argument
        for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
            os.environ.pop(name, None)
        if not address.startswith(("http://", "https://", "ray://")):
            raise InputError(f"--address: expected http://HOST:8265, the dashboard of a cluster, got {address}")
    cluster = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or "this machine"
    try:
        return Client(address)
    except AuthenticationError as error:
        raise PlacementError(
            f"the Ray cluster at {cluster} refuses: {first_line(error)}",
            "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH unless ~/.ray/auth_token has the token",
        ) from error
    except Exception as error:  # Ray raises many types for a missing cluster, some of them bare
        raise PlacementError(
            f"no Ray cluster answers at {cluster}: {first_line(error)}",
            "expected the address of its dashboard, such as http://127.0.0.1:8265",
        ) from error


def submit(
    client: JobSubmissionClient,
    entrypoint: str,
    env: dict[str, Any],
    metadata: dict[str, str],
    submission_id: str | None,
) -> str:
    """Upload the job's files and start it. Returns its submission id. Raises InputError or JobError."""
    with asking("submit the job"):
        return client.submit_job(entrypoint=entrypoint, runtime_env=env, metadata=metadata, submission_id=submission_id)


def reason(error: Exception) -> str:
    """The last line of the traceback from Ray's server, or the whole message in one line."""
    lines = [line.strip() for line in str(error).replace("\\n", "\n").splitlines() if line.strip(' ".')]
    return lines[-1].rstrip('".') if len(lines) > 1 else first_line(error)


def first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


def follow(log: LogTail, show: Callable[[str], None], changed: Callable[[str], None]) -> Outcome:
    """Wait for the end of a job. `show` gets each line of its log, `changed` each new status.

    Waits up to a minute for an unreachable cluster, then raises JobError.
    """
    status, reached = None, time.monotonic()
    while True:
        log.drain(show)
        try:
            details = log.client.get_job_info(log.job)
            reached = time.monotonic()
        except (RuntimeError, AuthenticationError, requests.exceptions.RequestException) as error:
            if "status code 404" in str(error):
                raise JobError(f"the cluster at {log.client.get_address()} does not know job {log.job}") from error
            if time.monotonic() - reached > LOST_S:
                raise JobError(
                    f"the cluster has been unreachable for {LOST_S:.0f} s: {first_line(error)}",
                    "the job may still be running there; submitted again, it resumes from the committed shards",
                ) from error
        else:
            if details.status != status:
                status = details.status
                changed(str(status.value))
            if status.is_terminal():
                log.join(LAST_LINES_S)
                log.drain(show)
                return outcome(details)
        time.sleep(POLL_EVERY_S)


def outcome(details: JobDetails) -> Outcome:
    return Outcome(str(details.status.value), details.driver_exit_code, details.message or "")


class LogTail(threading.Thread):
    """Puts the lines of a job's log into a queue, each once, until the log ends."""

    def __init__(self, client: JobSubmissionClient, job: str):
        super().__init__(daemon=True)
        self.client, self.job = client, job
        self.lines: queue.Queue[str] = queue.Queue()
        self.seen = 0

    def run(self) -> None:
        while True:
            try:
                asyncio.run(self.read())
                return
            except Exception:  # the connection broke; `follow` decides whether the cluster is lost
                time.sleep(1)

    async def read(self) -> None:
        """Read the log from its start."""
        count, rest = 0, ""
        async for chunk in self.client.tail_job_logs(self.job):
            *whole, rest = (rest + chunk).split("\n")
            for line in whole:
                count += 1
                if count > self.seen:
                    self.seen = count
                    self.lines.put(line)
        if rest:
            self.lines.put(rest)

    def drain(self, show: Callable[[str], None]) -> None:
        while not self.lines.empty():
            show(self.lines.get())


def stop(client: JobSubmissionClient, job: str) -> None:
    """Ask a job to stop: SIGTERM, and three seconds later SIGKILL."""
    with asking(f"stop job {job}, which may still be running"):
        if not client.get_job_status(job).is_terminal():
            client.stop_job(job)

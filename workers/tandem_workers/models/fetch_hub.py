"""Weights by hf://OWNER/REPO[@REVISION]/FILE, fetched by huggingface_hub into its own cache.

Endpoint, token, cache and offline mode are those of its environment: HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote

from tandem.errors import InputError
from tandem.hashing import file_sha256

EXPECTED = "hf://OWNER/REPO/FILE or hf://OWNER/REPO@REVISION/FILE"
LOGIN = re.compile(r"//[^/\s]*@")  # user and password of HF_ENDPOINT
ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([^/@\s]+))?/([^?#\s]+[^/?#\s])")


def fetch_from_hub(address: str) -> tuple[str, Path, str]:
    """The address with its revision resolved to a commit, the local file and its sha256.

    Large files have their hash as name in the library's cache: they are checked against it, and fetched again if
    damaged. Raises InputError: one line, and what to do.
    """
    match = ADDRESS.fullmatch(address)
    if not match or ".." in match[3].split("/"):
        raise InputError(f"expected {EXPECTED}, got {address}", "a revision with slashes: write them %2F")
    repo, revision, name = match[1], unquote(match[2] or "main"), unquote(match[3])
    for again in (False, True):
        path = download(address, repo, revision, name, again)
        found, named = file_sha256(path), path.resolve().name
        if named == found or not re.fullmatch(r"[0-9a-f]{64}", named):  # small files are named otherwise
            commit = path.parts[path.parts.index("snapshots") + 1]
            return f"hf://{repo}@{commit}/{quote(name)}", path, found
    raise InputError(f"{address}: expected a file of sha256 {named}, got {found}", "the hub sends a damaged file")


def download(address: str, repo: str, revision: str, name: str, again: bool) -> Path:
    from huggingface_hub import errors, hf_hub_download  # takes half a second to import

    endpoint = os.environ.get("HF_ENDPOINT") or None
    try:
        return Path(hf_hub_download(repo, name, revision=revision, endpoint=endpoint, force_download=again))
    except errors.GatedRepoError as error:
        page = LOGIN.sub("//", f"{endpoint or 'https://huggingface.co'}/{repo}")
        raise InputError(f"{address}: gated", f"set HF_TOKEN and accept the licence at {page}") from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{address}: no such repository, or a private one", "a private one needs HF_TOKEN, on every node"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{address}: no revision {revision} in this repository") from error
    except errors.LocalEntryNotFoundError as error:
        raise InputError(
            f"{address}: the hub cannot be reached, and the file is not in its cache: {cause_of(error)}",
            "check the network, HF_ENDPOINT and HF_HUB_OFFLINE; or give a path or an s3:// address",
        ) from error
    except errors.EntryNotFoundError as error:
        raise InputError(f"{address}: no file {name} in this repository at {revision}") from error
    except errors.HfHubHTTPError as error:
        hint = "HF_TOKEN may be wrong or lack the right to read" if status_of(error) in (401, 403) else None
        raise InputError(f"{address}: the hub answered {status_of(error) or cause_of(error)}", hint) from error
    except Exception as error:  # errors differ between versions, as the HTTP library does
        raise InputError(f"{address}: cannot be fetched: {cause_of(error)}") from error


def status_of(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def cause_of(error: BaseException) -> str:
    """The innermost cause in one line, without logins that a server may echo."""
    while error.__cause__ is not None:
        error = error.__cause__
    return LOGIN.sub("//", (str(error).splitlines() or [""])[0][:200]) or type(error).__name__

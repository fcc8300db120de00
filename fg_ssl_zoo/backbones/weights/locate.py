"""Find the weights of a name: in a folder, in the cache or on the Hub.

    1. FG_SSL_ZOO_DIR/NAME   your own folder; used without any request and without a hash
    2. published/NAME        in a checkout: the released models
    3. the Hub               the recipe's `hub.repo`, else FG_SSL_ZOO_ORG/NAME, else fg-ssl-zoo/NAME

A source passed by the caller comes before all of them. The recipe of a released model contains its
sha256 (`hub.sha256`); weights of places 2 and 3 must have it, unless FG_SSL_ZOO_ORG selects another
organisation. Downloads are always compared with the Hub's own hash, which its client does not do.
A revision, `NAME@REVISION`, comes from the Hub or its cache.
"""

import os
from pathlib import Path
from typing import Literal, NamedTuple

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import LocalEntryNotFoundError

from fg_ssl_zoo.backbones.weights.folder import (
    CONFIG,
    NO_PICKLE,
    WEIGHTS,
    check_sha256,
    has_weights,
    hub_hash,
    pickle_hint,
    sha256_of,
    weight_files,
    whole,
)
from fg_ssl_zoo.config import home_path, recipe_files

HUB_PATIENCE = 5.0
"""Seconds to wait for the Hub's first answer; HF_HUB_ETAG_TIMEOUT replaces it.

The client's own retries take 23 s if the connection is refused, and minutes if nothing answers.
"""

TRAIN = "accelerate launch train.py {}"
"""The command that trains a recipe."""

_HINTS = {
    "RepositoryNotFoundError": "There is no such repository, or HF_TOKEN may not read it",
    "RevisionNotFoundError": "It has no such commit, tag or branch",
    "RemoteEntryNotFoundError": NO_PICKLE,
}
"""Name of an error of the Hub client -> its meaning."""

CHECKOUT = Path(__file__).parents[3]


class PretrainedWeightsError(RuntimeError):
    """No place has the weights; the message names all places that were tried."""


class Published(NamedTuple):
    """Where one of our models is published; `published_folder` finds it.

    Fields:
        name: `fgssl_BACKBONE_DATA.METHOD`, also the folder's name below FG_SSL_ZOO_DIR.
        repo: `OWNER/NAME` on the Hub.
        revision: Commit, tag or branch of that repository; folders are then not searched.
        sha256: SHA-256 of the released weights, if known.
    """

    name: str
    repo: str
    revision: str | None = None
    sha256: str | None = None


class Place(NamedTuple):
    """A folder with a model.

    Fields:
        kind: `folder` for FG_SSL_ZOO_DIR, `checkout` for published/, `cache` for the Hub's cache.
        path: The folder.
    """

    kind: Literal["folder", "checkout", "cache"]
    path: Path


def published_root() -> Path | None:
    """`published/` of the checkout this package runs from; `None` for an installed wheel."""
    return CHECKOUT / "published" if (CHECKOUT / "hub_configs").is_dir() else None


def local_place(name: str) -> tuple[Place | None, list[str]]:
    """The folder of a name on this machine, and the places that were tried before it.

    Args:
        name: `fgssl_BACKBONE_DATA.METHOD`.
    """
    tried: list[str] = []
    own, root = os.environ.get("FG_SSL_ZOO_DIR"), published_root()
    if own:
        folder = home_path(own) / name
        if _is_whole(folder):
            return Place("folder", folder), tried
        tried.append(f"{folder} ({_lacking(folder)})")
    else:
        tried.append("FG_SSL_ZOO_DIR (not set)")
    if root:
        if _is_whole(root / name):
            return Place("checkout", root / name), tried
        tried.append(f"{root / name} ({_lacking(root / name)})")
    return None, tried


def _is_whole(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and has_weights(folder)


def _lacking(folder: Path) -> str:
    missing = [CONFIG] if not (folder / CONFIG).is_file() else []
    missing += [WEIGHTS] if not has_weights(folder) else []
    return f"no {' and no '.join(missing)}{pickle_hint(folder)}"


def published_folder(published: Published, cache_dir: str | Path | None = None) -> Path:
    """The folder with a model's `config.json` and weights, downloaded if there is no local one.

    Args:
        published: The model.
        cache_dir: Cache folder of the Hub client; its default when not given.

    Raises:
        PretrainedWeightsError: No place has them; names each place tried, and why it failed.
        ValueError: The weights found differ from the released ones.
    """
    name, repo, revision, sha256 = published
    tried = []
    if revision is None:
        place, tried = local_place(name)
        if place:
            folder = whole(place.path)
            if place.kind == "checkout" and sha256:
                again = f"`git checkout` of {place.path} brings the released ones back"
                check_sha256(folder / WEIGHTS, sha256, again)
            return folder
    try:
        folder = _from_hub(repo, revision, sha256, cache_dir)
    except Exception as error:  # the client also raises errors of its HTTP library
        where = f"{constants.ENDPOINT}/{repo}" + (f"@{revision}" if revision else "")
        tried.append(f"{where} ({explain(error)})")
        raise PretrainedWeightsError(
            f"no weights for {name}: tried {', then '.join(tried)}. {_remedies(name)}"
        ) from None
    check_download(folder, sha256)
    return folder


def _remedies(name: str) -> str:
    """What to do if there are no weights for a name."""
    train = "train it: " + TRAIN.format(name)
    ways = [
        f"{train}, then load runs/{name} or copy runs/{name}/export to FG_SSL_ZOO_DIR/{name}"
        if name in recipe_files() else "",
        f"download it once it is published: fgssl pull {name}",
        "set FG_SSL_ZOO_ORG to an owner who publishes it",
        "or pass pretrained=False",
    ]  # fmt: skip
    return f"To get them, {'; '.join(way for way in ways if way)}."


def check_download(folder: Path, sha256: str | None = None) -> None:
    """Compare downloaded weights with the Hub's own hash, and with that of the recipe.

    Raises:
        ValueError: A hash differs.
    """
    for path in weight_files(folder):
        again = f"Delete {path.resolve()} and load again"
        if wanted := hub_hash(path):
            check_sha256(path, wanted, again)
        if sha256:
            newer = (
                "a newer fg_ssl_zoo may know newer weights; FG_SSL_ZOO_ORG=OWNER takes an owner's"
            )
            check_sha256(path, sha256, f"{again}; {newer}")


def cached_folder(
    repo: str, revision: str | None = None, cache_dir: str | Path | None = None
) -> Path | None:
    """The cached snapshot of a repository; `None` if config or weights are missing."""
    try:
        return _snapshot(repo, revision, cache_dir, local_files_only=True)
    except (LocalEntryNotFoundError, OSError):
        return None


def _from_hub(
    repo: str, revision: str | None, sha256: str | None, cache_dir: str | Path | None
) -> Path:
    """Snapshot folder of a repository.

    There is no request if the cache holds the released weights or the requested commit, and one
    request if it may hold the newest commit. The cache is also used if the Hub does not answer.
    """
    cached = cached_folder(repo, revision, cache_dir)
    if cached and (cached.name == revision or (sha256 and sha256_of(cached / WEIGHTS) == sha256)):
        return cached
    try:
        url = hf_hub_url(repo, CONFIG, revision=revision)
        newest = get_hf_file_metadata(url, timeout=patience()).commit_hash
        if cached and cached.name == newest:
            return cached
        return _snapshot(repo, revision, cache_dir, local_files_only=False)
    except Exception:
        if cached:
            return cached
        raise


def patience() -> float:
    """Seconds to wait for the Hub's first answer."""
    return float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or HUB_PATIENCE)


def _snapshot(
    repo: str, revision: str | None, cache_dir: str | Path | None, *, local_files_only: bool
) -> Path:
    files = [
        hf_hub_download(
            repo, file, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only
        )
        for file in (CONFIG, WEIGHTS)
    ]
    return Path(files[-1]).parent


def explain(error: Exception) -> str:
    """An error of the Hub client in one line, with a remedy if one is known."""
    line = next(iter(str(error).splitlines()), "").rstrip(".")
    if isinstance(error, PermissionError) or getattr(error, "filename", None):
        line += "; the cache cannot be written, HF_HOME=FOLDER names another"
    if hint := _HINTS.get(type(error).__name__):
        line += f". {hint}"
    return f"{type(error).__name__}: {line}"

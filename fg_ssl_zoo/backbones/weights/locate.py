"""Where the weights of a name are: a folder, the cache or the Hub.

    1. FG_SSL_ZOO_DIR/NAME   yours; whatever lies there is taken, without any request
    2. published/NAME        of a checkout: the models that are released with it
    3. the Hub               the recipe's `hub.repo`, else FG_SSL_ZOO_ORG/NAME, else fg-ssl-zoo/NAME

A source that the caller names comes before all of them. A released model's sha256 stands in its
recipe (`hub.sha256`): places 2 and 3 have to have it, unless FG_SSL_ZOO_ORG says that somebody
else's model is wanted. What the Hub sends is always compared with the Hub's own hash, which its
client does not do. A pinned revision, `NAME@REVISION`, comes from the Hub or its cache.
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

The client alone would repeat the question for 23 s where nothing listens, and for minutes where no
one answers.
"""

TRAIN = "accelerate launch train.py {}"
"""The command that trains a recipe."""

_HINTS = {
    "RepositoryNotFoundError": "There is no such repository, or HF_TOKEN may not read it",
    "RevisionNotFoundError": "It has no such commit, tag or branch",
    "RemoteEntryNotFoundError": NO_PICKLE,
}
"""What an error of the Hub's client means, under its name."""

CHECKOUT = Path(__file__).parents[3]


class PretrainedWeightsError(RuntimeError):
    """No place holds the weights; the message names all that were tried."""


class Published(NamedTuple):
    """Where one of our models is published; `published_folder` finds it.

    Fields:
        name: `fgssl_BACKBONE_DATA.METHOD`, the folder's name below FG_SSL_ZOO_DIR.
        repo: `OWNER/NAME` on the Hub.
        revision: Commit, tag or branch of that repository; then no folder is asked.
        sha256: Of the released weights, where they are known.
    """

    name: str
    repo: str
    revision: str | None = None
    sha256: str | None = None


class Place(NamedTuple):
    """A folder with a model.

    Fields:
        kind: `folder` is FG_SSL_ZOO_DIR, `checkout` its published/, `cache` that of the Hub.
        path: The folder.
    """

    kind: Literal["folder", "checkout", "cache"]
    path: Path


def published_root() -> Path | None:
    """`published/` of the checkout this package runs from; `None` for an installed wheel."""
    return CHECKOUT / "published" if (CHECKOUT / "hub_configs").is_dir() else None


def local_place(name: str) -> tuple[Place | None, list[str]]:
    """The folder that a name means on this machine, and what was tried before it.

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
    """The folder with a model's `config.json` and weights, downloaded where no local one has them.

    Args:
        published: The model.
        cache_dir: Of the Hub's client; its own choice when not given.

    Raises:
        PretrainedWeightsError: No place has them; names each one tried, and why it failed.
        ValueError: A place has other weights than were released.
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
    except Exception as error:  # the client raises those of its HTTP library too
        where = f"{constants.ENDPOINT}/{repo}" + (f"@{revision}" if revision else "")
        tried.append(f"{where} ({explain(error)})")
        raise PretrainedWeightsError(
            f"no weights for {name}: tried {', then '.join(tried)}. {_remedies(name)}"
        ) from None
    check_download(folder, sha256)
    return folder


def _remedies(name: str) -> str:
    """How a user gets weights of a name that has none here."""
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
        ValueError: They are others.
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
    """What the Hub's client keeps of a repository; `None` where it lacks config or weights."""
    try:
        return _snapshot(repo, revision, cache_dir, local_files_only=True)
    except (LocalEntryNotFoundError, OSError):
        return None


def _from_hub(
    repo: str, revision: str | None, sha256: str | None, cache_dir: str | Path | None
) -> Path:
    """Snapshot folder of a repository.

    Nothing is asked where the cache holds the released weights, or the commit that is wanted; one
    question where it may hold the newest commit. What is cached is also taken where the Hub has no
    answer.
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
    """One line of what the Hub's client raised; what can be done about it where that is known."""
    line = next(iter(str(error).splitlines()), "").rstrip(".")
    if isinstance(error, PermissionError) or getattr(error, "filename", None):
        line += "; the cache cannot be written, HF_HOME=FOLDER names another"
    if hint := _HINTS.get(type(error).__name__):
        line += f". {hint}"
    return f"{type(error).__name__}: {line}"

"""A published folder: its weight files, checked before anything of them is loaded.

    config.json                         architecture, its arguments, the pixels it wants
    model.safetensors                   timm's own keys
    model-00001-of-00002.safetensors    or the same in parts, with model.safetensors.index.json

Whoever wrote the folder may be a stranger. Weights are safetensors and nothing else, as a pickle
may run code when it is opened; file names that the index mentions stay inside the folder; weights
are compared with the sha256 that whoever loads them knows. `config.py` checks config.json.
"""

import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import cached_assets_path
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fg_ssl_zoo.config import encodable, naming, whole_file

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
RECIPE = "recipe.yaml"
INDEX = "model.safetensors.index.json"

SAFE_NAME = re.compile(r"[A-Za-z0-9](?:[\w-]|\.(?!\.))*", re.ASCII)
"""A model's name: it becomes the name of a folder, of a repository and of a file."""

SHA256 = re.compile(r"[0-9a-f]{64}")

PICKLES = (".pth", ".pth.tar", ".pt", ".bin", ".ckpt", ".pkl", ".tar")
"""Files that may run code when they are opened."""

_GIT_LFS = b"version https://git-lfs"

NO_PICKLE = (
    "Only safetensors are opened, as a .bin or .pth may run code. If you trust whoever wrote it, "
    "convert it once (docs/publishing.md)"
)


def pickle_hint(folder: Path) -> str:
    """What to say of a folder that holds a pickle in the place of weights; nothing otherwise."""
    found = sorted(path.name for path in folder.glob("*") if path.name.endswith(PICKLES))
    return f", but {found[0]}. {NO_PICKLE}" if found else ""


def exported_folder(folder: Path) -> Path:
    """The exported folder itself: this one, or the one inside a run's.

    Raises:
        ValueError: Neither holds an export.
    """
    for place in (folder, folder / "export"):
        if (place / CONFIG).is_file():
            return place
    raise ValueError(
        f"neither {folder} nor {folder / 'export'} holds a {CONFIG}; a run exports when it ends"
    )


# --------------------------------------------------------------------------- weights


def has_weights(folder: Path) -> bool:
    """Whether the folder holds safetensors, whole or in parts."""
    return (folder / WEIGHTS).is_file() or (folder / INDEX).is_file()


def weight_files(folder: Path) -> list[Path]:
    """`model.safetensors`, or its parts.

    Raises:
        ValueError: The index names a file outside of the folder, or one that is not there.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    try:
        names = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / INDEX} is no index of parts") from error
    for name in sorted(names, key=str):
        if not isinstance(name, str) or not re.fullmatch(r"model-\d{5}-of-\d{5}.safetensors", name):
            raise ValueError(f"{folder / INDEX} names {name!r}, which is no part of a model")
        if not (folder / name).is_file():
            raise ValueError(f"{folder} lacks {name}")
    return [folder / name for name in sorted(names)]


def read_state(folder: Path) -> dict[str, Tensor]:
    """All tensors of a published folder.

    Raises:
        ValueError: A part is missing, named wrongly or broken.
    """
    return {key: value for path in weight_files(folder) for key, value in _read(path).items()}


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    check_readable(path)
    return load_file(path)


def check_readable(path: Path) -> None:
    """Refuse half a file, and what git leaves in the place of a large one; only its head is read.

    Raises:
        ValueError: Which it is.
    """
    try:
        with safe_open(path, framework="pt"):
            return
    except SafetensorError as error:
        reason = f"is broken ({error}); copy or download it again"
        with path.open("rb") as file:
            if file.read(len(_GIT_LFS)) == _GIT_LFS:
                reason = "is a pointer of git-lfs; `git lfs pull` brings the file itself"
        raise ValueError(f"{path} {reason}") from error


def sha256_of(path: Path) -> str:
    """Hash of a file's content; remembered until the file changes."""
    about = path.stat()
    return _sha256(str(path), about.st_mtime_ns, about.st_size)


@functools.lru_cache(maxsize=64)
def _sha256(path: str, changed: int, size: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, wanted: str, remedy: str) -> None:
    """Refuse a file with another content.

    Args:
        path: Weights.
        wanted: 64 hexadecimal digits.
        remedy: What to do about it.

    Raises:
        ValueError: Both hashes and the remedy.
    """
    found = sha256_of(path)
    if found != wanted:
        raise ValueError(
            f"{path} is not what was published: its sha256 is {found[:12]}..., and "
            f"{wanted[:12]}... was expected. {remedy}"
        )


def whole(folder: Path) -> Path:
    """The folder with its weights in one file, which is what timm opens.

    Parts are joined once into a folder of the cache; without a cache that can be written, into a
    temporary one.

    Raises:
        ValueError: Parts are missing or named wrongly, or the file is broken.
    """
    if not (folder / INDEX).is_file() or (folder / WEIGHTS).is_file():
        if (folder / WEIGHTS).is_file():
            check_readable(folder / WEIGHTS)
        return folder
    parts = weight_files(folder)
    stamp = hashlib.sha256("".join(sha256_of(path) for path in parts).encode()).hexdigest()[:16]
    try:
        root = Path(cached_assets_path("fg_ssl_zoo", "joined", f"{folder.name}-{stamp}"))
        writable = os.access(root, os.W_OK)
    except OSError:
        root, writable = Path(), False
    if not writable:
        root = Path(tempfile.mkdtemp(prefix="fg_ssl_zoo_"))
    if not (root / WEIGHTS).is_file():
        join(folder, root / WEIGHTS)
    with whole_file(root / CONFIG) as partial:  # others may read it now
        shutil.copyfile(folder / CONFIG, partial)
    return root


def join(folder: Path, target: Path) -> None:
    """Write the parts of a folder as the one file that they were split from, bit by bit."""
    with whole_file(target) as partial:
        write_state(read_state(folder), partial)


def write_state(state: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors; the same tensors become the same bytes.

    A second entry of metadata would make the order of both, and with it the hash, a matter of luck.

    Raises:
        OSError: The disk refused; the error has the path.
    """
    from safetensors.torch import save_file

    with naming(path):
        save_file(dict(state), path, metadata={"format": "pt"})


def write_network(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write `config.json` and `model.safetensors`, readable by the same people.

    safetensors alone would let nobody but the owner read the weights.
    """
    (folder / CONFIG).write_text(as_json(config), encoding="utf-8")
    write_state(state, folder / WEIGHTS)
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)


def as_json(content: Mapping[str, Any]) -> str:
    """Plain data as a file holds it."""
    return encodable(json.dumps(content, indent=2, ensure_ascii=False)) + "\n"


def hub_hash(path: Path) -> str | None:
    """The sha256 by which the Hub knows a downloaded file: the client names its copy after it."""
    name = path.resolve().name
    return name if SHA256.fullmatch(name) else None

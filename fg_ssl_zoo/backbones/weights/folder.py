"""A published folder: its weight files are checked before they are loaded.

    config.json                         architecture, its arguments, preprocessing
    model.safetensors                   timm's own keys
    model-00001-of-00002.safetensors    or the same in parts, with model.safetensors.index.json

The author of the folder is not trusted. Weights must be safetensors, since a pickle can run code;
file names in the index must stay inside the folder; weights are compared with the expected sha256,
if there is one. `config.py` checks config.json.
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
"""Valid names of a model, which become names of folders, repositories and files."""

SHA256 = re.compile(r"[0-9a-f]{64}")

PICKLES = (".pth", ".pth.tar", ".pt", ".bin", ".ckpt", ".pkl", ".tar")
"""Suffixes of files that can run code when they are opened."""

_GIT_LFS = b"version https://git-lfs"

NO_PICKLE = (
    "Only safetensors are opened, as a .bin or .pth may run code. If you trust whoever wrote it, "
    "convert it once (docs/publishing.md)"
)


def pickle_hint(folder: Path) -> str:
    """A hint for a folder that holds a pickle instead of safetensors; otherwise empty."""
    found = sorted(path.name for path in folder.glob("*") if path.name.endswith(PICKLES))
    return f", but {found[0]}. {NO_PICKLE}" if found else ""


def exported_folder(folder: Path) -> Path:
    """The exported folder: this folder, or `export` inside a run's folder.

    Raises:
        ValueError: Neither is an export.
    """
    for place in (folder, folder / "export"):
        if (place / CONFIG).is_file():
            return place
    raise ValueError(
        f"neither {folder} nor {folder / 'export'} holds a {CONFIG}; a run and fgssl classifier "
        "write it at their end"
    )


# --------------------------------------------------------------------------- weights


def has_weights(folder: Path) -> bool:
    """Whether the folder holds safetensors, in one file or in parts."""
    return (folder / WEIGHTS).is_file() or (folder / INDEX).is_file()


def weight_files(folder: Path) -> list[Path]:
    """`model.safetensors`, or its parts.

    Raises:
        ValueError: The index names a file outside of the folder, or a missing one.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    try:
        names = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / INDEX} is not an index of weight files") from error
    for name in sorted(names, key=str):
        if not isinstance(name, str) or not re.fullmatch(r"model-\d{5}-of-\d{5}.safetensors", name):
            raise ValueError(f"{folder / INDEX} names {name!r}, which is not a weight file")
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing in {folder}")
    return [folder / name for name in sorted(names)]


def read_state(folder: Path) -> dict[str, Tensor]:
    """All tensors of a published folder.

    Raises:
        ValueError: A part is missing, has an invalid name or is broken.
    """
    return {key: value for path in weight_files(folder) for key, value in _read(path).items()}


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    check_readable(path)
    return load_file(path)


def check_readable(path: Path) -> None:
    """Refuse a truncated file and a Git LFS pointer; only the header is read.

    Raises:
        ValueError: Says which it is.
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
    """SHA-256 of a file's content; cached until the file changes."""
    about = path.stat()
    return _sha256(str(path), about.st_mtime_ns, about.st_size)


@functools.lru_cache(maxsize=64)
def _sha256(path: str, changed: int, size: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, wanted: str, remedy: str) -> None:
    """Refuse a file whose SHA-256 differs.

    Args:
        path: Weight file.
        wanted: Expected hash, 64 hexadecimal digits.
        remedy: What to do about it, for the error.

    Raises:
        ValueError: The hashes differ; names both, and the remedy.
    """
    found = sha256_of(path)
    if found != wanted:
        raise ValueError(
            f"{path} differs from the published file: its sha256 is {found[:12]}..., expected "
            f"{wanted[:12]}...; {remedy}"
        )


def whole(folder: Path) -> Path:
    """A folder with the weights in one file, as timm needs it.

    Parts are joined once into a folder of the cache, or into a temporary folder if the cache
    cannot be written.

    Raises:
        ValueError: Parts are missing or have invalid names, or the file is broken.
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
    with whole_file(root / CONFIG) as partial:  # other users may read it
        shutil.copyfile(folder / CONFIG, partial)
    return root


def join(folder: Path, target: Path) -> None:
    """Join the parts of a folder into the file that they were split from, equal to the bit."""
    with whole_file(target) as partial:
        write_state(read_state(folder), partial)


def write_state(state: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors; the same tensors give the same bytes.

    Only one metadata entry is written: the order of two would vary, and with it the hash.

    Raises:
        OSError: The file could not be written; the error contains the path.
    """
    from safetensors.torch import save_file

    with naming(path):
        save_file(dict(state), path, metadata={"format": "pt"})


def write_network(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write `config.json` and `model.safetensors` with the same file permissions.

    safetensors itself creates files that only their owner can read.
    """
    (folder / CONFIG).write_text(as_json(config), encoding="utf-8")
    write_state(state, folder / WEIGHTS)
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)


def as_json(content: Mapping[str, Any]) -> str:
    """Plain data as the text of a JSON file."""
    return encodable(json.dumps(content, indent=2, ensure_ascii=False)) + "\n"


def hub_hash(path: Path) -> str | None:
    """The Hub's sha256 of a downloaded file, which is the name of the client's copy."""
    name = path.resolve().name
    return name if SHA256.fullmatch(name) else None

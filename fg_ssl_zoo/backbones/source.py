"""Interpret the text that names a model: which network, and where its weights are.

    source_of         MODEL of `fgssl eval` and `load`, or a teacher
    source_of_init    `backbone` and `init` of a recipe
    options_in        `vit_tiny_patch16_224{depth: 6}`, an architecture with keywords

No network is built here; `create.py` makes a backbone from a `Source`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import timm

from fg_ssl_zoo.backbones.build import check_options
from fg_ssl_zoo.backbones.fgssl_models import published_as
from fg_ssl_zoo.backbones.weights.config import PLACES
from fg_ssl_zoo.backbones.weights.folder import exported_folder, whole
from fg_ssl_zoo.backbones.weights.locate import TRAIN, Published
from fg_ssl_zoo.backbones.weights.start import is_file_name
from fg_ssl_zoo.config import home_path, nearest, printable, read_flow, recipe_files, untyped

FORMS = (
    "a run folder, an exported folder, hf-hub:OWNER/NAME, local-dir:FOLDER, a timm or fgssl name, "
    "or ARCHITECTURE@INIT, where INIT is what a recipe takes: scratch, a pretrained tag, a "
    ".safetensors file, ...; 'ARCHITECTURE{depth: 6}@INIT' with options of its constructor"
)
"""The forms of a model's name that `open_backbone` accepts."""


@dataclass(frozen=True)
class Source:
    """A network and its weights, before either is built or read.

    Attributes:
        words: The text that the user wrote, for messages and as the `init` of the backbone.
        architecture: timm name, if the text contains one; `None` if the weights define it.
        kind: Kind of the weights.

            - `scratch`: none;
            - `timm`: timm reads them from `place`: a name with its tag, `local-dir:FOLDER` or
              `hf-hub:OWNER/NAME`;
            - `file`: a bare file with any prefix of keys;
            - `folder`: an exported folder of ours, or a published model whose folder is searched.
        place: Path or name of the weights.
        options: Keywords of the timm constructor.
    """

    words: str
    architecture: str | None
    kind: Literal["scratch", "timm", "file", "folder"] = "scratch"
    place: str | Path | Published = ""
    options: Mapping[str, Any] = field(default_factory=dict)


def source_of(words: str) -> Source:
    """The source that this text names.

    Args:
        words: Text for `create.open_backbone`.

    Raises:
        ValueError: The text names no model; the message says what to write.
    """
    head, at, init = words.partition("@")
    if at and not _is_pinned(words):
        architecture, options = options_in(head)
        return source_of_init(architecture, init, options)
    return Source(words, None, "timm", _place(words))


def source_of_init(architecture: str, init: str, options: Mapping[str, Any]) -> Source:
    """The source for a recipe's `backbone`, `init` and `backbone_options`.

    Raises:
        ValueError: Unknown name, tag, folder or option.
    """
    if "." in architecture or not timm.is_model(architecture):
        name = printable(architecture)
        raise ValueError(f"unknown backbone '{name}'{nearest(architecture, timm.list_models())}")
    if init == "scratch":
        return Source(init, architecture, options=options)
    if is_file_name(init):
        return Source(init, architecture, "file", init, options)
    if init.startswith(PLACES):
        return Source(init, architecture, "timm", _at_home(init, "init: "), options)
    if init in tags_of(architecture):
        return Source(init, architecture, "timm", f"{architecture}.{init}", options)
    return Source(init, architecture, "folder", _ours(architecture, init), options)


def options_in(words: str) -> tuple[str, dict[str, Any]]:
    """`vit_tiny_patch16_224{depth: 6}` -> name and keywords of its constructor.

    Raises:
        ValueError: The braces do not contain a YAML mapping.
    """
    match = re.fullmatch(r"([\w.]+)(\{.*\})", words)
    if match is None:
        return words, {}
    where = f"model {match[1]}"
    options = read_flow(match[2], where)
    if not all(key.isidentifier() for key in options):
        raise ValueError(
            f"model '{words}': {match[2]} is not a mapping of options; write {{depth: 6}}"
        )
    options = untyped(options, where)
    check_options(options, where)  # before other keywords are added
    return match[1], options


def tags_of(architecture: str) -> list[str]:
    """The pretrained tags of an architecture."""
    return [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]


def _is_pinned(words: str) -> bool:
    """Whether the `@` belongs to a Hub revision or a path, and does not precede an init."""
    if words.startswith(PLACES) or home_path(words).is_dir():
        return True
    return "." in words.partition("@")[0] and published_as(words) is not None


def _at_home(place: str, where: str = "") -> str:
    kind, _, folder = place.partition(":")
    if not folder:  # timm would read the current folder
        wanted = "FOLDER" if kind == "local-dir" else "OWNER/NAME"
        raise ValueError(f"{where}{place} names nothing; write {place}{wanted}")
    return f"{kind}:{home_path(folder)}" if kind == "local-dir" else place


def _place(words: str) -> str:
    """Name in timm of a model that is defined by its weights."""
    if words.startswith(PLACES):
        return _at_home(words)
    folder = home_path(words)
    if folder.is_dir():
        return f"local-dir:{whole(exported_folder(folder).resolve())}"
    name, _, tag = words.partition("@")[0].partition(".")
    if not timm.is_model(name):
        known = [*timm.list_models(), *timm.list_pretrained("fgssl*")]
        hint = ", and no such folder" if "/" in words else nearest(words, known)
        raise ValueError(f"no model '{words}'{hint}; a model is {FORMS}")
    tags = tags_of(name)
    if tag and tag not in tags:
        raise ValueError(f"{name} has no weights '{tag}'{nearest(tag, tags)}")
    if not tags:
        raise ValueError(f"{name} has no pretrained weights; {name}@scratch is untrained")
    return words


def _ours(architecture: str, init: str) -> Path | Published:
    """The exported folder of a run or of a folder, or the model that one of our names means.

    Raises:
        ValueError: The text names no model.
    """
    if published := published_as(init):
        return published
    if home_path(init).is_dir():
        return exported_folder(home_path(init))
    if (recipe := Path(init).name) in recipe_files() and init.startswith("runs/"):
        raise ValueError(f"init: there is no {init}; train it first: {TRAIN.format(recipe)}")
    known = ["scratch", *tags_of(architecture), *timm.list_pretrained("fgssl*")]
    raise ValueError(
        f"init: '{printable(init)}' is neither scratch, a .safetensors file, a run or exported "
        f"folder, hf-hub:OWNER/NAME, one of our names nor a pretrained tag of {architecture}"
        f"{printable(nearest(init, known))}"
    )

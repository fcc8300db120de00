"""Load start weights from a file: detect which of its keys are the backbone, and check them.

    read_weights    reads safetensors only; nothing is unpickled
    backbone_part   the tensors under the prefix that fits the backbone best
    start_from      timm's own conversion, then loading, or an error

Projects store a backbone under different prefixes: `module.encoder_q.` (MoCo),
`teacher.backbone.` (DINO), `online_encoder.`, `backbone.`, `model.`. The prefix is detected by
names and shapes, so there is no list of projects. torchvision's ResNets have timm's keys. Heads are
ignored. The weights of an inner network, such as the CNN of a hybrid ViT, are loaded where names
and shapes fit.
"""

import logging
import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor, nn

from fg_ssl_zoo.backbones.weights.folder import PICKLES

PARTIAL = "#partial"
"""Suffix of a file that holds only a part of the backbone; the rest starts at random."""

ENOUGH = 0.9
"""Share of the backbone's weights that a file must contain."""

EVALUATED = ("teacher", "encoder_q", "base_encoder", "online")
"""Prefixes of the network that a paper evaluates, if a file holds two (DINO, MoCo, BYOL)."""

_COUNTER = "num_batches_tracked"  # a counter of a norm, missing in older files
_SHOWN = 5

_log = logging.getLogger(__name__)


def is_file_name(init: str) -> bool:
    """Whether this `init` names a weight file, readable or not."""
    return init.removesuffix(PARTIAL).endswith((".safetensors", *PICKLES))


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a file.

    Raises:
        ValueError: The file is missing, broken, or a pickle.
    """
    from safetensors.torch import load_file

    if path.name.endswith(PICKLES):
        raise ValueError(
            f"init: {path} is a pickle, which may run code when it is opened. Convert it once: "
            "python -c \"import torch; from safetensors.torch import save_file; w = torch.load('"
            f"{path}', map_location='cpu', weights_only=True); w = w.get('state_dict', w); "
            "save_file({k: v.contiguous().clone() for k, v in w.items()}, 'weights.safetensors')\" "
            "(more under Start weights in docs/recipes.md)"
        )
    if not path.is_file():
        raise ValueError(f"init: there is no file {path}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"init: {path} cannot be read ({error})") from error


def backbone_part(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> tuple[str, dict[str, Tensor]]:
    """The prefix under which most weights have the right name and shape, and its tensors.

    Args:
        found: Tensors of the file.
        wanted: Tensors of the backbone.

    Returns:
        The prefix with its final dot, and the tensors under it by the rest of their names.

    Raises:
        ValueError: Several networks fit equally well, and none of the known prefixes decides.
    """
    right, named = Counter[str](), Counter[str]()
    for key, value in found.items():
        parts = key.split(".")
        for start in range(len(parts)):
            name = ".".join(parts[start:])
            if name in wanted:
                prefix = key.removesuffix(name)
                named[prefix] += 1
                right[prefix] += value.shape == wanted[name].shape
    best = max(((right[prefix], named[prefix]) for prefix in named), default=None)
    prefix = _one_of([prefix for prefix in named if (right[prefix], named[prefix]) == best])
    part = {key: value for key, value in found.items() if key.startswith(prefix)}
    return prefix, {key.removeprefix(prefix): value for key, value in part.items()}


def _one_of(prefixes: Sequence[str]) -> str:
    if len(prefixes) < 2 or "" in prefixes:
        return "" if "" in prefixes else "".join(prefixes)
    for word in EVALUATED:
        chosen = [prefix for prefix in prefixes if word in prefix]
        if len(chosen) == 1:
            return chosen[0]
    raise ValueError(
        f"init: the file contains the backbone {len(prefixes)} times, under "
        f"{', '.join(prefixes)}; keep the keys of one of them"
    )


def start_from_file(model: nn.Module, path: Path, source: str, *, partial: bool = False) -> None:
    """`start_from` with all tensors of a file."""
    start_from(model, read_weights(path), source, partial=partial)


def start_from(
    model: nn.Module, found: Mapping[str, Tensor], source: str, *, partial: bool = False
) -> None:
    """Load the backbone from `found`; the log names tensors that start at random or are resized.

    Args:
        model: A timm model without its classifier; changed in place.
        found: Tensors with any prefix of keys.
        source: Their source, for messages.
        partial: Whether weights may be missing, or belong to a deeper network.

    Raises:
        ValueError: A shape differs, too many of the backbone's weights are missing, or the file
            belongs to a deeper network.
    """
    state = model.state_dict()
    wanted = {key: value for key, value in state.items() if not key.endswith(_COUNTER)}
    prefix, part = backbone_part(found, wanted)
    if not part.keys() & wanted.keys():
        prefix, found = "", _inside(found, wanted)
        part = dict(found)
    part = _as_timm_reads(part, model, wanted)
    shared = {key: value for key, value in part.items() if key in state}
    wrong = [key for key, value in shared.items() if value.shape != state[key].shape]
    if wrong:
        key = wrong[0]
        raise ValueError(
            f"init: {key} in {source} has shape {tuple(shared[key].shape)}; "
            f"the backbone's is {tuple(state[key].shape)} ({len(wrong)} differ)"
        )
    missing = [key for key in wanted if key not in shared]
    held = len(wanted) - len(missing)
    if held < (1 if partial else ENOUGH * len(wanted)):
        unused = [key for key in found if key.removeprefix(prefix) not in shared]
        raise ValueError(
            f"init: {source} holds {held} of the backbone's {len(wanted)} weights; it lacks "
            + _some(missing)
            + (f"; not the backbone's: {_some(unused)}" if unused else "")
            + (f"; if it is a part on purpose, write FILE{PARTIAL}" if held else "")
        )
    if not partial:
        _refuse_deeper(part, state, source)
    if prefix:
        _log.info("init: %s: the %d weights under %s", source, held, prefix)
    if missing:
        modules = sorted({key.rpartition(".")[0] or key for key in missing})
        _log.warning("init: %s lacks %s; they start at random", source, _some(modules))
    model.load_state_dict(shared, strict=False)


def _inside(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of an inner network, such as the CNN of a hybrid ViT."""
    ends = {name.rpartition(".")[2] for name in found}
    inside = {key: value for key, value in wanted.items() if key.rpartition(".")[2] in ends}
    try:
        place, _ = backbone_part(inside, found)
    except ValueError:  # it fits in several places, so it is ignored
        return dict(found)
    return {f"{place}{name}": value for name, value in found.items()}


def _refuse_deeper(part: Mapping[str, Tensor], state: Collection[str], source: str) -> None:
    """Refuse a deeper network: a ResNet-34 contains all keys of a ResNet-18."""
    parts = {key.partition(".")[0] for key in state}
    beyond = [key for key in part if key not in state and key.partition(".")[0] in parts]
    if len(beyond) > (1 - ENOUGH) * len(state):
        raise ValueError(
            f"init: {source} is of a larger network; the backbone has no place for {_some(beyond)}"
        )


def _as_timm_reads(
    part: dict[str, Tensor], model: nn.Module, wanted: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Apply timm's own conversion for this family (`checkpoint_filter_fn`) if tensors do not fit.

    timm's function resizes position embeddings, and converts the original keys of some papers.
    """
    if all(key in part and part[key].shape == value.shape for key, value in wanted.items()):
        return part
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return part
    try:
        converted: dict[str, Tensor] = convert(dict(part), model)
    except (
        LookupError,
        RuntimeError,
        AttributeError,
        AssertionError,
    ):  # weights of another network; the counts show it
        return part
    for key in part.keys() & converted.keys():
        before, after = tuple(part[key].shape), tuple(converted[key].shape)
        if before != after:
            _log.info("init: %s resized from %s to %s", key, before, after)
    return converted


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")

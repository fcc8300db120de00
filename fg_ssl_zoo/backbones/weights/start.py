"""Start weights out of a file: which of its keys are the backbone, and whether they are this one.

    read_weights    safetensors and nothing else: nothing is unpickled
    backbone_part   what lies under the prefix where most of the backbone is found
    start_from      timm's own conversion, then load, or say why not

Every project stores a backbone under another prefix: `module.encoder_q.` (MoCo),
`teacher.backbone.` (DINO), `online_encoder.`, `backbone.`, `model.`. The prefix is found by names
and shapes, so a project that nobody thought of needs no entry here. torchvision's ResNets have
timm's keys. Heads are left out, as the backbone has no such keys. A network that the backbone has
inside, as the CNN below a hybrid ViT, is put where its names and shapes fit.
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
"""Behind a file: it holds a part of the backbone on purpose, and the rest starts at random."""

ENOUGH = 0.9
"""Share of the backbone's weights that a file has to hold."""

EVALUATED = ("teacher", "encoder_q", "base_encoder", "online")
"""Of two networks in one file the one that its paper evaluates: DINO, MoCo, MoCo v3, BYOL."""

_COUNTER = "num_batches_tracked"  # of a norm; no weight, and older files lack it
_SHOWN = 5

_log = logging.getLogger(__name__)


def is_file_name(init: str) -> bool:
    """Whether these words of a recipe mean a file of weights, readable or not."""
    return init.removesuffix(PARTIAL).endswith((".safetensors", *PICKLES))


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a file.

    Raises:
        ValueError: No such file, a broken one, or a pickle.
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
    """The prefix under which most weights have the right name and shape, and what lies there.

    Args:
        found: A file's tensors.
        wanted: The backbone's.

    Returns:
        The prefix, with its last dot, and the tensors below it by the rest of their names.

    Raises:
        ValueError: Several networks fit equally, and none is known as the one to take.
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
        f"init: the backbone is there {len(prefixes)} times, under {', '.join(prefixes)}; "
        "keep the keys of one of them in the file"
    )


def start_from_file(model: nn.Module, path: Path, source: str, *, partial: bool = False) -> None:
    """`start_from` with all tensors of a file."""
    start_from(model, read_weights(path), source, partial=partial)


def start_from(
    model: nn.Module, found: Mapping[str, Tensor], source: str, *, partial: bool = False
) -> None:
    """Load the backbone out of `found`; what starts at random and what is resized is logged.

    Args:
        model: A timm model without its classifier; is changed in place.
        found: Tensors under anybody's keys.
        source: Where they come from, for messages.
        partial: Whether the file may lack any part, or hold a deeper network.

    Raises:
        ValueError: A shape that differs, too few of the backbone's weights, or more of them than it
            has a place for.
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
    """Weights of a network that the backbone has inside, as the CNN below a hybrid ViT."""
    ends = {name.rpartition(".")[2] for name in found}
    inside = {key: value for key, value in wanted.items() if key.rpartition(".")[2] in ends}
    try:
        place, _ = backbone_part(inside, found)
    except ValueError:  # it would fit in several places: it is none of them
        return dict(found)
    return {f"{place}{name}": value for name, value in found.items()}


def _refuse_deeper(part: Mapping[str, Tensor], state: Collection[str], source: str) -> None:
    """A ResNet-34 holds all that a ResNet-18 wants, and is another network all the same."""
    parts = {key.partition(".")[0] for key in state}
    beyond = [key for key in part if key not in state and key.partition(".")[0] in parts]
    if len(beyond) > (1 - ENOUGH) * len(state):
        raise ValueError(
            f"init: {source} is of a larger network; the backbone has no place for {_some(beyond)}"
        )


def _as_timm_reads(
    part: dict[str, Tensor], model: nn.Module, wanted: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The part after timm's own conversion for this family, where something does not fit as it is.

    That is where timm resizes position embeddings, and reads the original keys of some papers. Each
    of timm's model files calls that function `checkpoint_filter_fn`.
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
    ):  # another network's; the counts will say so
        return part
    for key in part.keys() & converted.keys():
        before, after = tuple(part[key].shape), tuple(converted[key].shape)
        if before != after:
            _log.info("init: %s resized from %s to %s", key, before, after)
    return converted


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")

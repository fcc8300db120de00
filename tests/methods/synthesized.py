"""Synthesized pairs as small as they come, and the images that their tests share."""

from functools import cache

from tests.methods.short_runs import build, pairs

SMALL = {"projection_size": 16, "queue_size": 16, "decoder_size": 32, "store_size": 64}
SIMSIAM = {**SMALL, "base": "simsiam", "predictor_size": 8}
AT_ONCE = {"pair_rise": (0.0, 0.0)}


@cache
def images():
    """The same eight pairs for all."""
    return pairs(build("synthesized_pairs", **SMALL))


def ready(base="moco", **options):
    """With a selection, after the features of one batch."""
    shape = SIMSIAM if base == "simsiam" else SMALL
    method = build("synthesized_pairs", **{**shape, **AT_ONCE, **options})
    method({"images": images()})
    method.on_step_end(0.5)
    return method

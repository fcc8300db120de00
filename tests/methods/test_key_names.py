"""Names in checkpoints and in `pretraining/`: those of earlier runs must load for good."""

import pytest

from tests.methods.short_runs import build


def layers(prefix, linear, biased=(), norms=(), plain_norms=()):
    """Names below a head: linear layers, those of them with a bias, norms with and without scale.

    Each is a place in the head.
    """
    running = ("running_mean", "running_var", "num_batches_tracked")
    names = {f"{prefix}.{place}.weight" for place in linear}
    names |= {f"{prefix}.{place}.bias" for place in biased}
    names |= {f"{prefix}.{place}.{key}" for place in norms for key in ("weight", "bias", *running)}
    return names | {f"{prefix}.{place}.{key}" for place in plain_norms for key in running}


def moco(before=""):
    """MoCo's parts but for the backbone; `before` stands before its own names."""
    heads = (f"{before}projector", f"{before}teacher.1")
    return set().union(*(layers(head, (0, 2), biased=(0, 2)) for head in heads))


def simsiam(before=""):
    projector = layers(f"{before}projector", (0, 3, 6), norms=(1, 4), plain_norms=(7,))
    return projector | layers(f"{before}predictor", (0, 3), biased=(3,), norms=(1,))


def queue(name):
    return {f"{name}.items", f"{name}.place"}


ATTENTION = layers("attention", ("conv",), norms=("norm",))


@pytest.mark.parametrize(
    ("name", "options", "teacher", "expected"),
    [
        ("moco", {}, "teacher.0.", moco() | queue("queue")),
        ("simsiam", {}, None, simsiam()),
        ("lcr", {}, "teacher.0.", moco() | queue("queue") | ATTENTION),
        ("synthesized_pairs", {"base": "moco"}, "base.teacher.0.",
         moco("base.") | queue("queue") | queue("pair_queue") | {"nu"}),
        ("synthesized_pairs", {"base": "simsiam"}, None, simsiam("base.") | {"nu"}),
    ],
)  # fmt: skip
def test_the_names_of_heads_teachers_and_queues_stay(name, options, teacher, expected):
    method = build(name, size=64, **options)
    own = {f"backbone.{key}" for key in method.backbone.state_dict()}
    expected = expected | own
    if teacher:
        expected |= {key.replace("backbone.", teacher, 1) for key in own}
    found = {key for key in method.state_dict() if not key.startswith(("decoder.", "weak."))}
    assert found == expected

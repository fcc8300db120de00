import numpy as np
import pytest
import torch

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.data.pairs import PAIRS, gamma
from fg_ssl_zoo.data.views import Augmentation, draw_view
from fg_ssl_zoo.methods import create_method
from fg_ssl_zoo.methods.simclr import SimCLR
from fg_ssl_zoo.ops.contrastive import nt_xent

SMALL = {"hidden_size": 32, "projection_size": 16}


def build(**options):
    torch.manual_seed(0)
    backbone = create_backbone("test_vit", image_size=32)
    method = create_method("simclr", backbone, **SMALL, **options)
    assert isinstance(method, SimCLR)
    return method


def test_one_pass_over_both_views_equals_two_passes_without_batch_statistics():
    method = build().eval()
    images = torch.randint(0, 256, (4, 2, 32, 32, 3), dtype=torch.uint8)
    z0, z1 = (
        method.projector(method.backbone(method.backbone.normalize(images[:, view])))
        for view in (0, 1)
    )
    expected = nt_xent(z0, z1, method.temperature)
    torch.testing.assert_close(method({"images": images}).loss, expected)


def test_the_projector_has_the_layers_that_were_asked_for():
    widths = [
        m.out_features for m in build(projector_layers=3).projector if hasattr(m, "out_features")
    ]
    assert widths == [32, 32, 16]
    last = build(projector_norm=True).projector[-1]
    assert isinstance(last, torch.nn.BatchNorm1d)
    assert not last.affine


def test_the_gamma_pair_edits_the_second_view_only(birds):
    still = {"crop_scale": (1, 1), "crop_ratio": (1, 1), "flip": 0, "jitter": 0, "blur": 0}
    plain = build(augmentation={**still, "grayscale": 0}).views(64)
    edited = build(augmentation={**still, "grayscale": 0}, pair="gamma").views(64)
    sample = birds[0]
    expected = gamma(sample["image"], _after_first_view(birds))
    first, second = edited(sample, np.random.default_rng(5))["images"]
    np.testing.assert_array_equal(first, plain(sample, np.random.default_rng(5))["images"][0])
    np.testing.assert_array_equal(second, expected)


def _after_first_view(birds):
    """The generator as the second view finds it: one view has drawn from it."""
    generator = np.random.default_rng(5)
    draw_view(generator, 64, 64, 64, Augmentation())
    return generator


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("preset", ["fine_grained", "paper"])
def test_every_pair_gives_two_views_and_the_unedited_one_is_plain(pair, preset, birds):
    seen = build(pair=pair, preset=preset).views(64)(birds[0], np.random.default_rng(5))["images"]
    assert seen.shape == (2, 64, 64, 3)
    again = build(pair=pair, preset=preset).views(64)(birds[0], np.random.default_rng(5))["images"]
    np.testing.assert_array_equal(seen, again)
    if PAIRS[pair].first is None:
        plain = build(pair=pair, preset=preset)
        plain.pair = PAIRS["original"]
        first = plain.views(64)(birds[0], np.random.default_rng(5))["images"][0]
        np.testing.assert_array_equal(seen[0], first)


def test_the_papers_views_crop_in_two_pairs_only():
    scales = {pair: build(pair=pair, preset="paper").augmentations[0].crop_scale for pair in PAIRS}
    assert [pair for pair, scale in scales.items() if scale == (0.08, 1.0)] == ["original", "gamma"]
    original, gamma_pair = (
        build(pair=p, preset="paper").augmentations[0] for p in ("original", "gamma")
    )
    assert (original.jitter, original.flip, original.blur) == (0.4, 0.0, 0.5)
    assert (gamma_pair.jitter, gamma_pair.flip, gamma_pair.blur) == (0.3, 0.5, 0.0)
    replaced = build(pair="gamma", preset="paper", augmentation={"flip": 0.0}).augmentations[1]
    assert replaced.flip == 0.0


def test_the_paper_gives_figures_for_two_pairs():
    figures = {pair: SimCLR.reported({"pair": pair}) for pair in PAIRS}
    assert {pair for pair, lines in figures.items() if lines} == {"original", "gamma"}
    assert SimCLR.reported({}) == figures["original"]
    assert figures["gamma"][0].startswith("73.8 %")


@pytest.mark.parametrize("pair", PAIRS)
def test_both_views_show_the_picture_that_the_sample_holds(pair):
    """The code of SSL-Cassava walked two folders in no order and could pair two images."""
    plain = {"jitter": 0.0, "grayscale": 0.0, "blur": 0.0, "crop_scale": [0.9, 1.0]}
    method = build(pair=pair, augmentation=plain)
    views = method.views(32)
    for colour in ([200, 40, 40], [40, 200, 40], [40, 40, 200]):
        image = np.broadcast_to(np.array(colour, np.uint8), (64, 64, 3)).copy()
        seen = views({"image": image, "index": 0}, np.random.default_rng(0))["images"]
        for view in seen:
            middle = view[12:20, 12:20].reshape(-1, 3).astype(int)
            strongest = middle[middle.sum(axis=1) > 0].mean(axis=0)  # holes are black
            assert strongest.argmax() == np.argmax(colour)

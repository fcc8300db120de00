"""The term that keeps a network near its start."""

import math

import pytest
import torch

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.layers.anchor import Anchor, listening


def test_the_term_is_the_mean_of_one_minus_the_cosine_by_loops():
    torch.manual_seed(0)
    start = create_backbone("test_resnet", image_size=32).eval()
    student = create_backbone("test_resnet", image_size=32).eval()
    images = torch.randn(3, 3, 32, 32)
    with listening(student) as heard:
        student(images)
        student.map_and_features(images)
        with torch.no_grad():
            student(images)  # as a teacher's pass: no gradient, not counted
    assert len(heard) == 2
    assert student.listener is None
    wanted = 0.0
    for a, b in zip(student(images).tolist(), start(images).tolist(), strict=True):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        norms = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
        wanted += (1 - dot / norms) / 3
    term = Anchor(start, 2.0).loss(heard)
    assert float(term.detach()) == pytest.approx(2 * wanted, rel=1e-4)
    term.backward()
    cosine = torch.cosine_similarity(student(images), start(images).detach())
    first = next(student.parameters())
    (expected,) = torch.autograd.grad(2 * (1 - cosine).mean(), first)
    torch.testing.assert_close(first.grad, expected)


def test_a_network_at_its_start_has_no_loss_and_a_method_without_features_is_refused():
    backbone = create_backbone("test_vit", image_size=32).eval()
    anchor = Anchor(backbone, 1.0)
    with listening(backbone) as heard:
        backbone(torch.randn(2, 3, 32, 32))
    assert float(anchor.loss(heard).detach()) == pytest.approx(0, abs=1e-5)
    with pytest.raises(ValueError, match="start_distillation: this method reads no pooled"):
        anchor.loss([])

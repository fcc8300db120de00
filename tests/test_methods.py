"""The contract that every method keeps, on a tiny ResNet and a tiny ViT."""

from dataclasses import replace
from statistics import median

import numpy as np
import pytest
import torch

from fg_ssl_zoo.backbones.backbone import create_backbone
from fg_ssl_zoo.data.loader import Order, ViewDataset, step_loader
from fg_ssl_zoo.data.views import Augmentation, augmentations_of
from fg_ssl_zoo.methods import METHODS, create_method

BACKBONES = ["test_resnet", "test_vit"]
OPTIONS = {
    "byol": {"hidden_size": 32, "projection_size": 16},
    "detcon": {"hidden_size": 32, "projection_size": 16},
    "dino": {"prototypes": 32, "hidden_size": 32, "bottleneck": 16, "local_crops": 2},
    "jigsaw": {"num_permutations": 10, "dropout": 0.0},
    "lcr": {"queue_size": 256, "projection_size": 16},
    "moco": {"projection_size": 16, "queue_size": 8},
    "particle": {"hidden_size": 32, "projection_size": 16, "prototypes": 32},
    "pmg": {"num_classes": 4, "hidden_size": 16, "embedding_size": 32},
    "reconstruction": {"decoder_size": 32},
    "simclr": {"hidden_size": 32, "projection_size": 16},
    "simsiam": {"projection_size": 32, "predictor_size": 8},
    "srgan": {"width": 8, "discriminator_width": 8},
    "super_resolution": {"width": 8},
    "synthesized_pairs": {"decoder_size": 32, "projection_size": 16, "queue_size": 8},
}
SIZES = {"jigsaw": 96}
"""Side of the input in pixels, where 64 does not suit."""

BACKBONE_OPTIONS = {("lcr", "test_vit"): {"global_pool": "avg", "fc_norm": False}}
"""For a method that needs a mean over the patches."""


def build(name, backbone, seed=0):
    torch.manual_seed(seed)
    options = BACKBONE_OPTIONS.get((name, backbone), {})
    shape = create_backbone(backbone, image_size=SIZES.get(name, 64), **options)
    return create_method(name, shape, **OPTIONS.get(name, {}))


def batch_for(method, birds):
    dataset = ViewDataset(birds, method.views(method.backbone.image_size), seed=0)
    return next(iter(step_loader(dataset, Order(len(birds), 8, 0), range(1), num_workers=0)))


def test_the_second_view_is_augmented_in_its_own_way():
    """BYOL's and DINO's papers treat the two views differently."""
    plain = Augmentation(flip=0, jitter=0, grayscale=0, blur=0)
    pair = plain, replace(plain, solarize=1)
    image = np.full((64, 64, 3), 200, np.uint8)
    sample = {"image": image, "index": 0, "regions": np.eye(64, dtype=np.uint8)}
    for name in ("byol", "detcon", "dino", "lcr", "moco", "particle", "simclr", "simsiam"):
        method = build(name, "test_resnet")
        assert method.augmentations == augmentations_of("fine_grained")
        method.augmentations = pair
        first, second = method.views(64)(sample, np.random.default_rng(0))["images"]
        assert (first.min(), first.max(), second.min(), second.max()) == (200, 200, 55, 55), name


every_method = pytest.mark.parametrize("name", METHODS)
every_backbone = pytest.mark.parametrize("backbone", BACKBONES)


@every_method
@every_backbone
def test_the_loss_is_a_finite_scalar_and_reaches_what_is_optimised(name, backbone, birds):
    method = build(name, backbone)
    loss = method(batch_for(method, birds)).loss
    assert loss.shape == ()
    assert torch.isfinite(loss)
    loss.backward()
    optimised = {id(p) for group in method.param_groups() for p in group["params"]}
    for label, parameter in method.named_parameters():
        assert (id(parameter) in optimised) == parameter.requires_grad, label
        assert (parameter.grad is not None) == parameter.requires_grad, label


@every_method
@every_backbone
def test_thirty_steps_on_one_batch_lower_the_loss(name, backbone, birds):
    method = build(name, backbone)
    batch = batch_for(method, birds)
    optimizer = torch.optim.AdamW(method.param_groups(), lr=1e-3, weight_decay=0.0)
    queue = {key: x.clone() for key, x in method.state_dict().items() if key.startswith("queue.")}
    losses = []
    for _ in range(30):
        method.load_state_dict(queue, strict=False)  # the batch is not to meet itself in it
        loss = method(batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert median(losses[-10:]) < 0.9 * losses[0]  # two players may jump now and then


@every_method
@every_backbone
def test_state_survives_a_save_and_seeded_runs_agree(name, backbone, birds, tmp_path):
    method, twin, other = build(name, backbone), build(name, backbone), build(name, backbone, 1)
    batch = batch_for(method, birds)
    assert torch.equal(method(batch).loss, twin(batch).loss)
    torch.save(method.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other(batch).loss, method(batch).loss)

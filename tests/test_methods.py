"""The contract that every method keeps, on a tiny ResNet and a tiny ViT."""

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.config import Train
from fg_ssl_zoo.data.loader import ViewDataset, step_loader
from fg_ssl_zoo.data.order import Order
from fg_ssl_zoo.data.views import Augmentation, augmentations_of
from fg_ssl_zoo.method import check_batch
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


@cache
def teacher_words():
    """A small network with weights, for methods that learn from one."""
    torch.manual_seed(99)
    file = Path(tempfile.mkdtemp()) / "teacher.safetensors"
    save_file(create_backbone("test_resnet", image_size=64).model.state_dict(), file)
    return f"test_resnet@{file}"


def build(name, backbone, seed=0):
    if name == "distillation":
        OPTIONS[name] = {"teacher": teacher_words()}
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


LONG_STEPS = set(METHODS) - {"moco", "simclr"}
"""Methods of which thirty steps take two seconds or more."""
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


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in LONG_STEPS else name
        for name in METHODS
    ],
)
@pytest.mark.parametrize(
    "backbone", ["test_resnet", pytest.param("test_vit", marks=pytest.mark.slow)]
)
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


# --------------------------------------------------------------------------- what a batch must hold

PARTS_ALONE = {"local_negatives": False, "gather_targets": False}


def reason(method, processes=1):
    """Why one image for each process is not enough."""
    try:
        train = Train(batch_size=processes, accumulate=1)
        check_batch(method, train, processes, torch.device("cpu"))
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("name", "backbone", "options", "alone", "beside_another"),
    [
        ("simclr", "test_vit", {"projector_norm": False}, "compares each image", None),
        ("simclr", "test_resnet", {}, "compares each image", None),
        ("byol", "test_vit", {}, "BatchNorm (projector.1)", None),
        ("simsiam", "test_vit", {}, "BatchNorm (projector.1)", None),
        ("moco", "test_resnet", {}, "BatchNorm (backbone.model.conv1.1)", None),
        ("moco", "test_vit", {}, None, None),
        ("dino", "test_vit", {}, None, None),
        ("moco", "test_efficientnet", {}, "BatchNorm (backbone.model.bn1)", "train.batch_size=4"),
        ("particle", "test_vit", {}, None, None),  # other parts of the image are negatives
        ("particle", "test_vit", PARTS_ALONE, "compares each image", "train.batch_size=4"),
    ],
)
def test_one_picture_is_enough_where_neither_negatives_nor_norms_need_two(
    name, backbone, options, alone, beside_another
):
    method = create_method(
        name, create_backbone(backbone, image_size=64), **{**OPTIONS[name], **options}
    )
    for wanted, found in ((alone, reason(method)), (beside_another, reason(method, 2))):
        assert (wanted is None) == (found is None), found
        assert wanted is None or wanted in found


def test_norms_that_keep_their_running_statistics_need_no_batch():
    method = build("moco", "test_resnet")
    assert "BatchNorm" in reason(method)
    for module in method.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    assert reason(method) is None

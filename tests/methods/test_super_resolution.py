import cv2
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.backbones.maps import train_up_to_last_map
from fg_ssl_zoo.config import load_recipe
from fg_ssl_zoo.data.drawn import DrawnBirds
from fg_ssl_zoo.data.views import LowAndHigh
from fg_ssl_zoo.engine import checkpoint
from fg_ssl_zoo.layers.generator import Generator, check_size
from fg_ssl_zoo.methods import create_method
from fg_ssl_zoo.methods.super_resolution import SuperResolution
from fg_ssl_zoo.pretrain import pretrain
from tests.runs import metrics


def build(backbone="test_resnet", size=96, backbone_options=None, **options):
    torch.manual_seed(0)
    shape = create_backbone(backbone, image_size=size, **backbone_options or {})
    method = create_method("super_resolution", shape, **{"width": 8, **options})
    assert isinstance(method, SuperResolution)
    return method


def batch_of(images, size=96):
    views = LowAndHigh(size, 4)
    seen = [views(image, np.random.default_rng(i)) for i, image in enumerate(images)]
    return {key: torch.as_tensor(np.stack([s[key] for s in seen])) for key in ("low", "high")}


# --------------------------------------------------------------------------- views


def test_high_is_a_crop_of_the_picture_itself_and_low_its_bicubic_quarter():
    image = DrawnBirds(1, image_size=128)[0]["image"]
    generator = np.random.default_rng(3)
    seen = LowAndHigh(96, 4)({"image": image, "index": 0}, generator)
    y, x = (int(v) for v in np.random.default_rng(3).integers(0, 33, 2))
    np.testing.assert_array_equal(seen["high"], image[y : y + 96, x : x + 96])
    pillow = Image.fromarray(seen["high"]).resize((24, 24), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(seen["low"], np.asarray(pillow))
    assert (seen["high"].dtype, seen["low"].dtype) == (np.uint8, np.uint8)


def test_low_is_not_aliased():
    """Stripes of one pixel are gray from afar; a kernel of four pixels on every fourth is not."""
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    low = LowAndHigh(64, 4)({"image": stripes, "index": 0}, np.random.default_rng(0))["low"]
    assert np.abs(low[:, 2:-2].astype(int) - 127).max() <= 8


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (96, 40), (1, 1)])
def test_a_picture_smaller_than_the_crop_is_enlarged(shape):
    image = np.full((*shape, 3), 77, np.uint8)
    seen = LowAndHigh(96, 4)({"image": image, "index": 0}, np.random.default_rng(0))
    assert seen["high"].shape == (96, 96, 3)
    assert np.unique(seen["low"]).tolist() == [77]


@pytest.mark.parametrize(
    ("size", "patch", "message"),
    [
        (98, None, "98 is not 4 times a side; use 96 or 100"),
        (2, None, "2 is not 4 times a side; use 4"),
        (224, 16, "224 is not 4 times a side of whole patches of 16 pixels; use 192 or 256"),
    ],
)
def test_a_size_that_does_not_fit_names_those_that_do(size, patch, message):
    with pytest.raises(ValueError, match=message):
        check_size(size, patch)


def test_methods_refuse_such_a_size():
    for name in ("super_resolution", "srgan"):
        with pytest.raises(ValueError, match="use 192 or 256"):
            create_method(name, create_backbone("test_vit", image_size=224))
    with pytest.raises(ValueError, match="use 96 or 100"):
        build().views(98)
    with pytest.raises(
        ValueError,
        match=r"test_convnext at 96 pixels cannot read images of 24 \(.*use another size, or a",
    ):
        build("test_convnext", 96)


# --------------------------------------------------------------------------- generator


@pytest.mark.parametrize(
    ("backbone", "size"),
    [("test_resnet", 96), ("test_resnet", 100), ("test_vit", 128), ("test_convnext", 128),
     ("test_efficientnet", 96), ("fgssl_srresnet", 96)],
)  # fmt: skip
def test_any_backbone_restores_four_times_the_side(backbone, size, birds):
    options = {"num_blocks": 2} if backbone == "fgssl_srresnet" else {}
    method = build(backbone, size, options)
    batch = batch_of([birds[0], birds[1]], size)
    restored = method.restore(batch["low"])
    assert restored.shape == (2, 3, size, size)
    method(batch).loss.backward()
    for name, parameter in method.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_the_papers_generator_is_the_trunk_and_two_doublings():
    method = build("fgssl_srresnet", width=64)
    assert method.backbone.feature_maps(torch.randn(1, 3, 24, 24), [-1])[0].shape == (1, 64, 24, 24)
    assert method.restore(torch.zeros(1, 24, 24, 3, dtype=torch.uint8)).shape == (1, 3, 96, 96)
    assert not method.generator.reads_picture
    count = sum(p.numel() for p in method.parameters() if p.requires_grad)
    # By hand, from figure 4; convolutions that a norm follows have no bias.
    conv, norm = 64 * 64 * 9, 2 * 64
    trunk = (3 * 64 * 81 + 64) + 1 + 16 * (2 * conv + 2 * norm + 1) + conv + norm
    assert count == trunk + 2 * (64 * 256 * 9 + 256 + 1) + (64 * 3 * 81 + 3)


def test_the_small_picture_and_the_map_both_reach_the_restored_one():
    torch.manual_seed(0)
    generator = Generator(7, 2, 6, width=4)  # 2 -> 8 -> 6
    feature_map = torch.randn(2, 7, 2, 2, requires_grad=True)
    low = torch.randn(2, 3, 6, 6, requires_grad=True)
    found = torch.autograd.grad(generator(feature_map, low).square().sum(), (feature_map, low))
    assert all(gradient.abs().sum() > 0 for gradient in found)


def test_what_lies_behind_the_last_map_is_frozen_and_nothing_else_moves():
    torch.manual_seed(0)
    backbone = create_backbone("test_vit", image_size=64)
    state = {key: value.clone() for key, value in backbone.state_dict().items()}
    assert train_up_to_last_map(backbone, 64) == (64, 4)
    assert {n for n, p in backbone.named_parameters() if not p.requires_grad} == {
        "model.fc_norm.weight", "model.fc_norm.bias",
    } or {n for n, p in backbone.named_parameters() if not p.requires_grad} == {
        "model.norm.weight", "model.norm.bias",
    }  # fmt: skip
    assert backbone.training
    resnet = create_backbone("test_resnet", image_size=64)
    buffers = {key: value.clone() for key, value in resnet.state_dict().items()}
    train_up_to_last_map(resnet, 24)
    assert all(p.requires_grad and p.grad is None for p in resnet.parameters())
    for kept, model in ((state, backbone), (buffers, resnet)):
        for key, value in model.state_dict().items():
            assert torch.equal(value, kept[key]), key


def test_a_network_with_a_layer_behind_its_pooling_has_that_layers_width():
    torch.manual_seed(0)
    backbone = create_backbone("mobilenetv3_small_050", image_size=96).eval()
    with torch.no_grad():
        assert backbone(torch.zeros(1, 3, 64, 64)).shape == (1, backbone.num_features)
    jigsaw = create_method("jigsaw", backbone, num_permutations=4)
    tiles = torch.zeros(2, 9, 32, 32, 3, dtype=torch.uint8)
    assert jigsaw({"tiles": tiles, "permutation": torch.zeros(2, dtype=torch.long)}).loss > 0


# --------------------------------------------------------------------------- loss and runs


def test_the_loss_is_the_squared_error_of_pixels_in_0_to_1(birds):
    method = build().eval()
    batch = batch_of([birds[0], birds[1]])
    output = method(batch)
    restored = method.restore(batch["low"])
    expected = (restored - batch["high"].permute(0, 3, 1, 2) / 255).square().mean()
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(output.metrics["loss/pixel"], expected.detach())
    assert set(output.metrics) == {"loss/pixel", "train/psnr", "train/ssim"}
    assert not any(value.requires_grad for value in output.metrics.values())


METHOD = "srgan"
RECIPE = """
backbone: test_resnet
data: {name: drawn, image_size: 96, num_images: 16, num_classes: 4}
stages:
  - method: super_resolution
    options: {width: 8}
    train: &adam {steps: 2, batch_size: 8, optimizer: adam, lr: 1.0e-3, lr_scaling: none, warmup: 0}
  - method: srgan
    options: {width: 8, discriminator_width: 8}
    inherit: [generator]
    train: {<<: *adam, checkpoint_every: 0.5}
monitor: {every: 1, k: 3}
"""


def state_of(folder, number):
    found = checkpoint.positions(folder / "checkpoints")
    return checkpoint.load([path for at, path in found.items() if at.stage == number][-1])["method"]


@pytest.mark.slow
def test_the_generator_walks_into_the_second_stage(recipe, tmp_path):
    """With a rate of nothing the second stage ends with the generator that the first has made."""
    still = ["stages[1].train.lr=1e-30", "stages[1].train.weight_decay=0"]
    keep = ["stages[1].train.checkpoint_every=9", "stages[0].train.checkpoint_every=9"]
    pretrain(load_recipe(recipe, ["output=run", *still, *keep]))
    first, second = (state_of(tmp_path / "run", number) for number in (0, 1))
    inherited = {key for key in first if key.startswith("generator.")}
    assert inherited
    for key in inherited:
        assert torch.equal(first[key], second[key]), key
    assert any(key.startswith("discriminator.") for key in second)


@pytest.mark.slow
def test_two_stages_train_draw_resume_and_reload(recipe, tmp_path):
    whole = pretrain(load_recipe(recipe, ["output=whole"]))
    pretrain(load_recipe(recipe, ["output=cut"]))
    cut = tmp_path / "cut"
    newest = max(checkpoint.positions(cut / "checkpoints"))
    assert (newest.stage, newest.step) == (1, 2)
    (cut / "checkpoints" / newest.file_name).unlink()  # goes on inside the second stage
    again = pretrain(load_recipe(recipe, ["output=cut"]))
    for key, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key

    run = tmp_path / "whole"
    pictures = sorted(path.name for path in (run / "pictures").iterdir())
    assert pictures == [f"stage{n}_round0_step00000002.png" for n in (0, 1)]
    assert cv2.imread(str(run / "pictures" / pictures[1])).shape == (8 * 96, 3 * 96, 3)
    lines = metrics(run)
    last = next(line for line in reversed(lines) if "loss/generator" in line)
    assert {"loss/discriminator", "loss/pixel", "train/psnr", "train/ssim"} <= last.keys()

    exported = timm.create_model(f"local-dir:{run / 'export'}", pretrained=True).eval()
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(exported(x), whole(x))
    assert not [key for key in load_file(run / "export" / "model.safetensors") if "disc" in key]


def test_a_picture_is_taken_without_a_trace(birds):
    method = build()
    batch = batch_of([birds[0], birds[1]])
    before = {key: value.clone() for key, value in method.state_dict().items()}
    with torch.no_grad():
        shown = method.eval().picture(batch)
    assert (shown.dtype, shown.shape) == (torch.uint8, (192, 288, 3))
    for key, value in method.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("wide", [True, False])
def test_a_strip_is_enlarged_only_where_its_crop_is(wide, monkeypatch):
    strip = np.random.default_rng(0).integers(0, 256, (2, 4000, 3), dtype=np.uint8)
    strip = cv2.resize(strip[:, ::40], (4000, 2), interpolation=cv2.INTER_CUBIC)
    whole = cv2.resize(strip, (64 * 2000, 64), interpolation=cv2.INTER_CUBIC)
    if not wide:
        strip, whole = (np.ascontiguousarray(one.transpose(1, 0, 2)) for one in (strip, whole))
    expected = LowAndHigh(64, 4)({"image": whole, "index": 0}, np.random.default_rng(5))
    monkeypatch.setattr(cv2, "resize", None)
    seen = LowAndHigh(64, 4)({"image": strip, "index": 0}, np.random.default_rng(5))
    for key in ("high", "low"):
        assert seen[key].shape == expected[key].shape
        assert np.abs(seen[key].astype(int) - expected[key]).max() <= 12  # of other cubic filters

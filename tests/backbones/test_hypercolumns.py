import pytest
import torch
import torch.nn.functional as F

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.backbones.hypercolumns import (
    default_layers,
    hypercolumns,
    maps_of,
    overlapping_patches,
)


def build(name, size=64):
    torch.manual_seed(0)
    return create_backbone(name, image_size=size).eval()


@pytest.fixture(scope="module")
def resnet():
    return build("test_resnet")


@pytest.fixture(scope="module")
def vit():
    return build("test_vit")


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def maps_by_hand(model, x):
    """The four maps of PARTICLE, one layer after another, from the deepest."""
    x = model.maxpool(model.act1(model.bn1(model.conv1(x))))
    maps = [x]
    for layer in (model.layer1, model.layer2, model.layer3):
        maps.append(layer(maps[-1]))
    return maps[::-1]


def bilinear(plane, size):
    """(h, w) to (size, size), pixel centres apart by h / size, one pixel after another."""
    height, width = plane.shape
    out = torch.zeros(size, size, dtype=plane.dtype)
    for i in range(size):
        for j in range(size):
            y = min(max((i + 0.5) * height / size - 0.5, 0), height - 1)
            x = min(max((j + 0.5) * width / size - 0.5, 0), width - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
            top = plane[y0, x0] * (1 - x + x0) + plane[y0, x1] * (x - x0)
            bottom = plane[y1, x0] * (1 - x + x0) + plane[y1, x1] * (x - x0)
            out[i, j] = top * (1 - y + y0) + bottom * (y - y0)
    return out


@torch.no_grad()
def test_a_hypercolumn_is_its_maps_resized_by_hand_and_stacked(resnet, images):
    found = hypercolumns(resnet, images[:1], default_layers(resnet), 5)
    expected = []
    for layer in maps_by_hand(resnet.model, images[:1]):
        resized = torch.stack([bilinear(plane, 5) for plane in layer[0]])
        expected.append(resized / resized.norm(dim=0).clamp(min=1e-12))
    torch.testing.assert_close(found[0], torch.cat(expected), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_stages_by_number_are_those_of_their_names(resnet, images):
    by_name = maps_of(resnet, images, ["layer1", "layer4", "layer2"])
    by_number = maps_of(resnet, images, [1, -1, 2])
    for one, other in zip(by_name, by_number, strict=True):
        torch.testing.assert_close(one, other)


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext", "test_byobnet"])
def test_any_cnn_has_hypercolumns(name, images):
    backbone = build(name)
    layers = default_layers(backbone)
    found = hypercolumns(backbone, images, layers, 16)
    assert found.shape == (
        2,
        sum(m.shape[1] for m in backbone.feature_maps(images, layers)),
        16,
        16,
    )
    assert not any(module._forward_hooks for module in backbone.modules())


@torch.no_grad()
def test_tokens_of_a_vit_are_its_feature_maps(vit, images):
    (wanted,) = vit.feature_maps(images, [1])
    (found,) = maps_of(vit, images, [1])
    torch.testing.assert_close(found, wanted)


def attention_by_hand(vit, images, block):
    """Queries, keys and the softmax of a block, head by head."""
    model = vit.model
    x = model._pos_embed(model.patch_embed(images))
    for before in model.blocks[:block]:
        x = before(x)
    attn = model.blocks[block].attn
    q, k, _ = attn.qkv(model.blocks[block].norm1(x)).chunk(3, dim=-1)
    maps = []
    for head in range(attn.num_heads):
        own = slice(head * attn.head_dim, (head + 1) * attn.head_dim)
        logits = q[:, :1, own] @ k[:, :, own].mT / attn.head_dim**0.5
        maps.append(logits.softmax(dim=-1)[:, 0, 1:])
    side = model.patch_embed.grid_size[0]
    return k[:, 1:].mT.unflatten(2, (side, side)), torch.stack(maps, 1).unflatten(2, (side, side))


@torch.no_grad()
def test_keys_and_attention_equal_those_computed_by_hand(vit, images):
    last = len(vit.model.blocks) - 1
    keys, attention = attention_by_hand(vit, images, last)
    first, _ = attention_by_hand(vit, images, 0)
    found = maps_of(vit, images, ["keys", "attention", "keys:0", f"keys:{last}"])
    for one, other in zip(found, [keys, attention, first, keys], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_overlapping_patches_give_a_larger_map_of_the_same_features(vit, images):
    before = vit(images)
    stride = vit.patch_size // 2
    (fine,) = maps_of(vit, images, ["keys"], stride=stride)
    side = (64 - vit.patch_size) // stride + 1
    assert fine.shape[-2:] == (side, side)
    (plain,) = maps_of(vit, images, ["keys"])
    (same,) = maps_of(vit, images, ["keys"], stride=vit.patch_size)
    torch.testing.assert_close(same, plain)
    torch.testing.assert_close(vit(images), before)


@torch.no_grad()
def test_a_patch_of_the_overlapping_grid_is_the_convolution_at_that_place(vit, images):
    stride = vit.patch_size // 2
    with overlapping_patches(vit, stride):
        fine = vit.model.patch_embed(images)
    crop = images[:, :, stride : stride + vit.patch_size, 2 * stride : 2 * stride + vit.patch_size]
    proj = vit.model.patch_embed.proj
    expected = F.conv2d(crop, proj.weight, proj.bias)[:, :, 0, 0]
    torch.testing.assert_close(fine[:, 1, 2], expected, rtol=1e-4, atol=1e-5)
    assert vit.model.patch_embed.proj.stride == (vit.patch_size,) * 2


@pytest.mark.parametrize(
    ("name", "layers", "options", "message"),
    [
        ("test_resnet", ["layer9"], {}, "test_resnet has no layer 'layer9'"),
        ("test_resnet", ["global_pool"], {}, "'global_pool' of test_resnet has no map as output"),
        ("test_resnet", [9], {}, "there is no"),
        ("test_resnet", ["layer1"], {"stride": 4}, "stride: test_resnet has no patches"),
        (
            "test_vit",
            ["layer1"],
            {},
            "test_vit has no 'layer1'; the layers of a ViT",
        ),
        ("test_vit", ["keys:x"], {}, "has no 'keys:x'"),
        ("convit_tiny", ["keys"], {}, "the keys of convit_tiny cannot be read; use the tokens"),
        ("test_vit", [99], {}, "blocks; there is no 99"),
        ("test_vit", ["keys"], {"stride": 99}, "stride: 99 is not between 1 and the patch size"),
    ],
)
def test_what_a_network_does_not_have_is_refused(name, layers, options, message, images):
    with pytest.raises(ValueError, match=message), torch.no_grad():
        maps_of(build(name), images, layers, **options)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("eva02_tiny_patch14_224", "keys"),  # `qkv` is not called
        ("eva02_base_patch14_224", "keys"),  # no `qkv`
        ("eva02_base_patch14_224", "attention"),
        ("cait_xxs24_224", "keys"),  # talking heads; no class token in its blocks yet
        ("vit_relpos_small_patch16_224", "attention"),  # depends on a table of positions
        ("vit_small_patch16_rope_224", "attention"),  # turns queries and keys
    ],
)
def test_keys_and_attention_of_other_kinds_are_refused_and_tokens_read(name, word):
    side = 56 if "patch14" in name else 64
    network = create_backbone(name, image_size=side, depth=1).eval()
    images = torch.randn(1, 3, side, side)
    with pytest.raises(ValueError, match=f"the {word} of {name} cannot be read; use the tokens"):
        maps_of(network, images, [word])
    (tokens,) = maps_of(network, images, [-1])
    assert tokens.shape == (1, network.num_features, 4, 4)

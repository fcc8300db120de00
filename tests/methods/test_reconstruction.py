import copy

import torch

from fg_ssl_zoo.data.views import PRESETS
from fg_ssl_zoo.ops.image_quality import psnr
from tests.methods.short_runs import build, losses_on, pairs

SMALL = {"decoder_size": 32}


def test_the_loss_is_the_squared_error_of_the_decoded_features():
    method = build("reconstruction", **SMALL)
    images = pairs(method)
    twin = copy.deepcopy(method)
    output = method({"images": images})
    view = twin.backbone.normalize(images[:, 0])
    decoded = twin.decoder(twin.backbone(view)).detach()  # 32 px both
    wanted = sum(float((a - b).square().mean()) for a, b in zip(decoded, view, strict=True)) / 8
    torch.testing.assert_close(float(output.loss.detach()), wanted, rtol=1e-5, atol=0)
    seen, true = (twin.backbone.denormalize(x) for x in (decoded, view))
    torch.testing.assert_close(true, images[:, 0].movedim(-1, 1) / 255, rtol=0, atol=1e-6)
    torch.testing.assert_close(output.metrics["train/psnr"], psnr(seen.clamp(0, 1), true))


def test_four_pictures_are_learnt_and_the_backbone_stays_to_the_bit():
    method = build("reconstruction", **SMALL)
    before = copy.deepcopy(method.backbone.state_dict())
    images = pairs(method, count=4)
    optimizer = torch.optim.Adam(list(method.param_groups()), lr=1e-3)
    losses = losses_on(method, images, optimizer, steps=20)
    assert losses[-1] < 0.5 * losses[0]
    for key, value in method.backbone.state_dict().items():  # running statistics too
        assert torch.equal(value, before[key]), key
    assert all(p.grad is None and not p.requires_grad for p in method.backbone.parameters())


def test_the_picture_shows_the_view_what_is_decoded_and_the_difference():
    method = build("reconstruction", **SMALL).eval()
    images = pairs(method)
    with torch.no_grad():
        shown = method.picture({"images": images})
    assert (shown.shape, shown.dtype) == ((8 * 32, 3 * 32, 3), torch.uint8)
    torch.testing.assert_close(shown.view(8, 32, 96, 3)[:, :, :32], images[:, 0], rtol=0, atol=1)
    assert build("reconstruction", preset="paper").augmentation == PRESETS["moco_v2"][0]

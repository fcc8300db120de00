import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.config import Train
from fg_ssl_zoo.data.drawn import DrawnBirds
from fg_ssl_zoo.data.views import LowAndHigh
from fg_ssl_zoo.engine import checkpoint
from fg_ssl_zoo.engine.optim import create_optimizer
from fg_ssl_zoo.methods import create_method, srgan
from fg_ssl_zoo.methods.srgan import SRGAN
from tests.runs import go_on, launch

SMALL = {"width": 8, "discriminator_width": 8}


def build(backbone="test_resnet", size=96, backbone_options=None, **options):
    torch.manual_seed(0)
    shape = create_backbone(backbone, image_size=size, **backbone_options or {})
    method = create_method("srgan", shape, **{**SMALL, **options})
    assert isinstance(method, SRGAN)
    return method


@pytest.fixture(scope="module")
def batch():
    images, views = DrawnBirds(4, image_size=96), LowAndHigh(96, 4)
    seen = [views(images[i], np.random.default_rng(i)) for i in range(4)]
    return {key: torch.as_tensor(np.stack([s[key] for s in seen])) for key in ("low", "high")}


def trained(*modules):
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def generator_loss_of_the_paper(method, batch):
    """L_G with D in training mode and BCE written out; D is changed by it, so give it a copy."""
    real = batch["high"].permute(0, 3, 1, 2) / 255
    fake = method.restore(batch["low"])
    logits = method.discriminator(fake)
    adversarial = F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
    return F.mse_loss(fake, real) + 0.001 * adversarial


def discriminator_loss_of_the_paper(method, batch):
    real = batch["high"].permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        fake = method.restore(batch["low"])
    logits = method.discriminator(real), method.discriminator(fake)
    return F.binary_cross_entropy_with_logits(
        logits[0], torch.ones_like(logits[0])
    ) + F.binary_cross_entropy_with_logits(logits[1], torch.zeros_like(logits[1]))


# --------------------------------------------------------------------------- two players


@pytest.fixture
def in_double(monkeypatch):
    """All that a method computes is float64, in which sums that cancel stay exact."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.slow
@pytest.mark.usefixtures("in_double")
def test_one_adam_over_one_loss_is_two_adams_over_two(batch):
    method = build(backbone_options={"zero_init_last": False})
    players, judges = copy.deepcopy(method), copy.deepcopy(method)
    train = Train(optimizer="adam", lr=1e-3, lr_scaling="none", weight_decay=0.0, batch_size=4)
    one = create_optimizer(method, train)
    g = torch.optim.Adam(trained(players.backbone, players.generator), lr=1e-3)
    d = torch.optim.Adam(trained(judges.discriminator), lr=1e-3)

    output = method(batch)
    output.loss.backward()
    generator_loss = generator_loss_of_the_paper(players, batch)
    discriminator_loss = discriminator_loss_of_the_paper(judges, batch)
    torch.testing.assert_close(output.metrics["loss/generator"], generator_loss.detach())
    torch.testing.assert_close(output.metrics["loss/discriminator"], discriminator_loss.detach())
    torch.testing.assert_close(output.loss, generator_loss + discriminator_loss)

    generator_loss.backward()
    discriminator_loss.backward()
    for name, parameter in method.named_parameters():
        twin = judges if name.startswith("discriminator.") else players
        wanted = twin.get_parameter(name).grad
        assert (parameter.grad is None) == (wanted is None), name
        if wanted is not None:
            torch.testing.assert_close(parameter.grad, wanted, rtol=1e-3, atol=1e-6)

    before = copy.deepcopy(method.state_dict())
    for optimizer in (one, g, d):
        optimizer.step()
    for name, parameter in method.named_parameters():
        twin = judges if name.startswith("discriminator.") else players
        small = parameter.grad is not None and parameter.grad.abs() < 1e-6  # a sign Adam blows up
        wanted = twin.get_parameter(name).detach()
        close = torch.isclose(parameter.detach(), wanted, atol=1e-5)
        assert bool((close | torch.as_tensor(small)).all()), name
        if parameter.requires_grad:  # also defect 2: whatever is trained moves
            assert not torch.equal(parameter, before[name]), name


def test_the_adversarial_terms_are_float32_under_autocast(batch):
    method, logits = build(size=32), []
    with torch.no_grad():
        method.discriminator.fc.weight.mul_(10)  # logits whose rounding shows
    method.discriminator.register_forward_hook(lambda *found: logits.append(found[-1]))
    small = {"low": batch["low"][:, :8, :8], "high": batch["high"][:, :32, :32]}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = method(small)
    judged, real, fake = (x.detach().double() for x in logits)
    assert logits[0].dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32
    wanted = F.softplus(-real).mean() + F.softplus(fake).mean()
    found = output.metrics["loss/discriminator"]
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=0)
    wanted = output.metrics["loss/pixel"].double() + 0.001 * F.softplus(-judged).mean()
    found = output.metrics["loss/generator"].double()
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)


def test_the_gradients_of_the_two_losses_are_disjoint(batch):
    method = build()
    output = method(batch)
    players = trained(method.backbone, method.generator)
    judge = trained(method.discriminator)
    assert {id(p) for p in players}.isdisjoint(id(p) for p in judge)
    groups = [group["params"] for group in method.param_groups()]
    assert [{id(p) for p in group} for group in groups] == [
        {id(p) for p in players}, {id(p) for p in judge},
    ]  # fmt: skip

    full = torch.autograd.grad(output.loss, players + judge)
    mute = build(adversarial_weight=0.0)
    mute.load_state_dict(method.state_dict())
    alone = torch.autograd.grad(
        mute(batch).loss, trained(mute.backbone, mute.generator) + trained(mute.discriminator)
    )
    for a, b in zip(full[len(players) :], alone[len(players) :], strict=True):
        torch.testing.assert_close(a, b)  # how G is judged does not reach D
    assert not torch.equal(full[0], alone[0])  # and does reach G


def test_judging_moves_no_statistic_of_the_discriminator(batch):
    """Two passes a step, of true and of restored images, are all that its norms remember."""
    method = build()
    twin = copy.deepcopy(method.discriminator)
    method(batch)
    with torch.no_grad():
        fake = build().restore(batch["low"])
        twin(batch["high"].permute(0, 3, 1, 2) / 255)
        twin(fake)
    for key, value in method.discriminator.named_buffers():
        torch.testing.assert_close(value, twin.get_buffer(key), msg=key)
        if key.endswith("num_batches_tracked"):
            assert value == 2


def test_the_papers_generator_is_published_whole(batch):
    narrow = {"num_blocks": 2, "pool_size": 4, "width": 8}
    method = build("fgssl_srresnet", backbone_options=narrow).eval()
    generator = method.companions()["generator"].eval()
    low = batch["low"]
    with torch.no_grad():
        enlarged = generator.model.forward_features(generator.normalize(low))
        torch.testing.assert_close(method.generator.last(enlarged), method.restore(low))
    assert set(build().companions()) == {"discriminator"}


def test_an_untrained_judge_cannot_tell_and_speaks_in_logits(batch):
    """Defect 3: a sigmoid before the cross entropy keeps each term above 0.313 or 0.693."""
    method = build(discriminator_width=64)
    loss = method(batch).metrics["loss/discriminator"].item()
    assert loss == pytest.approx(2 * math.log(2), abs=0.1)
    with torch.no_grad():
        method.discriminator.fc.bias.fill_(40.0)
        images = batch["high"].permute(0, 3, 1, 2) / 255
        assert method.discriminator(images).min() > 1
        assert F.softplus(-method.discriminator(images)).mean() < 1e-6


def test_the_judge_reads_pixels_and_the_backbone_normalised_ones(batch):
    method = build().eval()
    seen = {}
    method.discriminator.register_forward_pre_hook(lambda _, x: seen.update(judge=x[0]))
    method.backbone.model.register_forward_pre_hook(lambda _, x: seen.update(model=x[0]))
    method.discriminator_loss(*[batch["high"].permute(0, 3, 1, 2) / 255] * 2)
    assert 0 <= seen["judge"].min() < seen["judge"].max() <= 1
    low = batch["low"].permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (method.backbone.mean, method.backbone.std))
    torch.testing.assert_close(method.backbone.normalize(batch["low"]), (low - mean) / std)


@pytest.mark.slow
def test_the_judge_learns_to_tell(batch):
    method = build(discriminator_width=4)
    optimizer = torch.optim.Adam(trained(method.discriminator), lr=1e-3)
    losses = []
    for _ in range(12):
        output = method(batch)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.metrics["loss/discriminator"].item())
    assert losses[-1] < 0.5 * losses[0]


# --------------------------------------------------------------------------- perceptual term


def test_the_perceptual_term_reads_imagenet_pixels_and_is_fixed(batch, tmp_path, monkeypatch):
    """Its network is VGG-19's little sister here: the same words, an eighth of the work."""
    monkeypatch.setattr(srgan, "PERCEPTUAL", "vgg11")
    monkeypatch.setattr(srgan, "PERCEPTUAL_LAYERS", 2)
    torch.manual_seed(1)
    weight = torch.randn(64, 3, 3, 3) * 0.1
    save_file({"features.0.weight": weight}, tmp_path / "vgg.safetensors")
    monkeypatch.setattr(srgan, "create_backbone", lambda name, init: vgg_of(name, weight))
    method = build(perceptual=str(tmp_path / "vgg.safetensors"), adversarial_weight=0.0)
    output = method(batch)
    real = batch["high"].permute(0, 3, 1, 2) / 255
    fake = build().restore(batch["low"]).detach()
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    phi = [F.conv2d((x - mean) / std, weight, padding=1).relu() for x in (fake, real)]
    expected = F.mse_loss(fake, real) + 0.006 * F.mse_loss(*phi)
    torch.testing.assert_close(output.metrics["loss/generator"], expected)
    output.loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in method.perceptual.parameters())


def vgg_of(name, weight):
    with torch.device("meta"):
        backbone = create_backbone(name)
    backbone.model.features[0].weight = torch.nn.Parameter(weight)
    backbone.model.features[0].bias = torch.nn.Parameter(torch.zeros(64))
    return backbone


def test_the_36_layers_of_vgg_19_end_with_the_sixteenth_convolution():
    with torch.device("meta"):
        features = create_backbone(srgan.PERCEPTUAL).model.features[: srgan.PERCEPTUAL_LAYERS]
    assert sum(isinstance(m, torch.nn.Conv2d) for m in features) == 16
    assert isinstance(features[-1], torch.nn.ReLU)


@pytest.mark.slow
def test_without_weights_there_is_no_perceptual_term_and_wrong_ones_are_refused(batch):
    method = build()
    assert method.perceptual is None
    assert "loss/perceptual" not in method(batch).metrics
    with pytest.raises(ValueError, match=r"^perceptual: there is no file mine\.safetensors"):
        build(perceptual="mine.safetensors")


# --------------------------------------------------------------------------- processes


def train_a_run(path, images, steps=2):
    settings = Train(steps=steps, batch_size=8, optimizer="sgd", lr=0.1, lr_scaling="none")
    go_on(path, images, lambda: build(size=64), settings)


@pytest.mark.slow
def test_two_processes_train_the_weights_that_one_trains(tmp_path, birds):
    train_a_run(tmp_path / "one", birds)
    launch(train_a_run, tmp_path / "two", birds)
    one, two = (
        checkpoint.load(next(iter(checkpoint.positions(tmp_path / n / "checkpoints").values())))
        for n in ("one", "two")
    )
    for key, value in one["method"].items():
        torch.testing.assert_close(two["method"][key], value, rtol=1e-3, atol=1e-4, msg=key)

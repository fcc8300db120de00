"""Adam and AdamW in one pass: the same steps, and a stopped run that goes on to the bit."""

import copy

import pytest
import torch

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.config import Train
from fg_ssl_zoo.engine import checkpoint
from fg_ssl_zoo.engine.optim import create_optimizer
from fg_ssl_zoo.engine.run_folder import RunFolder
from fg_ssl_zoo.methods import create_method
from tests.engine.test_loop import assert_equal, trained


def method():
    torch.manual_seed(0)
    small = {"hidden_size": 16, "projection_size": 8}
    return create_method("simclr", create_backbone("test_resnet", image_size=64), **small)


def unfused(optimizer):
    for group in optimizer.param_groups:
        group["fused"] = False
    return optimizer


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_a_fused_step_is_the_step_of_the_paper(name):
    """Each from the same weights and moments, so that no difference of an earlier step counts."""
    network = method()
    train = Train(optimizer=name, lr=0.1, weight_decay=0.1)
    fused = create_optimizer(network, train)
    assert all(group["fused"] for group in fused.param_groups)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        twin = copy.deepcopy(network)
        plain = create_optimizer(twin, train)
        plain.load_state_dict(copy.deepcopy(fused.state_dict()))
        unfused(plain)
        for one, two in zip(network.parameters(), twin.parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            two.grad = one.grad.clone()
        fused.step()
        plain.step()
        for one, two in zip(network.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "nadamuon"])
def test_a_run_goes_on_to_the_bit(name, tmp_path, birds):
    train = {"optimizer": name, "lr": 0.01, "weight_decay": 0.05}
    whole = trained(tmp_path / "run", birds, train=train)
    folder = RunFolder(tmp_path / "run")
    newest = max(checkpoint.positions(folder.checkpoints))
    (folder.checkpoints / newest.file_name).unlink()
    assert_equal(trained(tmp_path / "run", birds, train=train), whole)


def test_a_checkpoint_of_before_goes_on_as_it_began():
    train = Train(optimizer="adamw")
    old = unfused(create_optimizer(method(), train)).state_dict()
    optimizer = create_optimizer(method(), train)
    optimizer.load_state_dict(old)
    assert not any(group["fused"] for group in optimizer.param_groups)


def test_other_optimizers_stay_as_timm_makes_them():
    for name in ("lars", "sgd", "lamb"):
        optimizer = create_optimizer(method(), Train(optimizer=name))
        assert not any(group.get("fused") for group in optimizer.param_groups)

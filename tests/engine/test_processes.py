"""Two processes compute what one does on the whole batch.

Compared are loss, gradients, statistics and trained weights.
"""

import copy

import pytest
import torch
from accelerate import Accelerator
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.config import Train
from fg_ssl_zoo.engine import checkpoint
from fg_ssl_zoo.layers.batch_norm import AnyDeviceSyncBatchNorm, synchronise
from fg_ssl_zoo.methods import create_method
from fg_ssl_zoo.ops.contrastive import nt_xent
from fg_ssl_zoo.ops.distributed import rank, world_size
from tests.runs import end_of, go_on, launch

CPU = torch.device("cpu")


def projections(rows=8):
    return torch.randn(2, rows, 6, dtype=torch.float64, generator=torch.manual_seed(0))


def nt_xent_of_a_share(path):
    Accelerator(cpu=True)
    mine = slice(rank() * 4, rank() * 4 + 4)
    z0, z1 = (z[mine].clone().requires_grad_() for z in projections())
    loss = nt_xent(z0, z1, 0.2)
    g0, g1 = torch.autograd.grad(loss, (z0, z1))
    torch.save([loss.detach(), g0 / world_size(), g1 / world_size()], path / f"{rank()}.pt")


def test_nt_xent_and_its_gradient_equal_one_process_on_the_whole_batch(tmp_path):
    z0, z1 = projections().requires_grad_().unbind()
    z0.retain_grad()
    z1.retain_grad()
    loss = nt_xent(z0, z1, 0.2)
    loss.backward()
    launch(nt_xent_of_a_share, tmp_path)
    shares = [torch.load(tmp_path / f"{r}.pt") for r in (0, 1)]
    torch.testing.assert_close((shares[0][0] + shares[1][0]) / 2, loss.detach())
    torch.testing.assert_close(torch.cat([share[1] for share in shares]), z0.grad)
    torch.testing.assert_close(torch.cat([share[2] for share in shares]), z1.grad)


def norms_of_a_share(path):
    Accelerator(cpu=True)
    torch.manual_seed(0)
    norm = nn.Sequential(nn.BatchNorm2d(3))
    synchronise(norm, CPU).double()
    mine = slice(rank() * 2, rank() * 2 + 2)
    x = pictures()[mine].clone().requires_grad_()
    out = norm(x)
    (gradient,) = torch.autograd.grad((out**3).mean(), x)
    far = nn.Sequential(nn.BatchNorm2d(3))
    synchronise(far, CPU)
    found = [out.detach(), gradient / 2, dict(norm[0].named_buffers())]
    found += [far(far_from_zero()[mine]).detach(), far[0].running_var]
    torch.save(found, path / f"{rank()}.pt")


def pictures():
    return torch.randn(4, 3, 5, 5, dtype=torch.float64, generator=torch.manual_seed(2)) * 2 + 1


def far_from_zero():
    """Mean 100 and standard deviation 0.1: E[x^2] - E[x]^2 in float32 is noise."""
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=torch.manual_seed(3))
    return (100 + 0.1 * x).float()


def test_synchronised_norms_equal_batch_norm_on_the_whole_batch(tmp_path):
    norm, x = nn.BatchNorm2d(3).double(), pictures().requires_grad_()
    out = norm(x)
    (out**3).mean().backward()
    launch(norms_of_a_share, tmp_path)
    shares = [torch.load(tmp_path / f"{r}.pt") for r in (0, 1)]
    torch.testing.assert_close(torch.cat([s[0] for s in shares]), out.detach())
    torch.testing.assert_close(torch.cat([s[1] for s in shares]), x.grad)
    for key, value in norm.named_buffers():
        torch.testing.assert_close(shares[1][2][key], value)
    exact = nn.BatchNorm2d(3).double()
    wanted = exact(far_from_zero().double()).detach()
    found = torch.cat([s[3] for s in shares]).double()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3)
    torch.testing.assert_close(shares[1][4].double(), exact.running_var, rtol=1e-4, atol=0)


@pytest.mark.parametrize("affine", [True, False])
def test_a_synchronised_norm_keeps_keys_and_is_plain_in_one_process(affine):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.BatchNorm1d(4, affine=affine))
    twin = nn.Sequential(nn.BatchNorm1d(4, affine=affine))
    synchronise(twin, CPU)
    assert isinstance(twin[0], AnyDeviceSyncBatchNorm)
    assert twin.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(6, 4)
    torch.testing.assert_close(twin(x), plain(x))
    torch.testing.assert_close(twin.eval()(x), plain.eval()(x))


def test_a_second_round_on_gpus_keeps_the_activations_of_timms_norms():
    torch.manual_seed(0)
    network = nn.Sequential(BatchNormAct2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    plain = copy.deepcopy(network).eval()
    for _ in range(2):
        synchronise(network, torch.device("cuda"))
    assert isinstance(network[0], nn.SyncBatchNorm)
    assert isinstance(network[1][0], nn.SyncBatchNorm)
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(network.eval()(x), plain(x))


def small_simclr(backbone):
    torch.manual_seed(0)
    small = {"hidden_size": 16, "projection_size": 8}
    return create_method("simclr", create_backbone(backbone, image_size=64), **small)


def in_float64(method):
    """The same from the pixels on: in float32 one unit at the edge of a ReLU moves the weights."""
    method.backbone.normalize = lambda x: Backbone.normalize(method.backbone, x).double()
    return method.double()


def train_a_run(path, images, backbone, kind=in_float64):
    settings = Train(steps=3, batch_size=8, optimizer="sgd", lr=0.5, checkpoint_every=0.5)
    go_on(path, images, lambda: kind(small_simclr(backbone)), settings)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_two_processes_train_the_weights_that_one_trains(tmp_path, birds, backbone):
    train_a_run(tmp_path / "one", birds, backbone)
    launch(train_a_run, tmp_path / "two", birds, backbone)
    one, two = end_of(tmp_path / "one"), end_of(tmp_path / "two")
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-9, atol=1e-12, msg=key)


@pytest.mark.slow
def test_two_processes_stopped_and_going_on_equal_two_that_were_not_to_the_bit(tmp_path, birds):
    launch(train_a_run, tmp_path / "whole", birds, "test_resnet", nn.Module.float)
    launch(train_a_run, tmp_path / "cut", birds, "test_resnet", nn.Module.float)
    last = max(checkpoint.positions(tmp_path / "cut" / "checkpoints"))
    (tmp_path / "cut" / "checkpoints" / last.file_name).unlink()
    launch(train_a_run, tmp_path / "cut", birds, "test_resnet", nn.Module.float)
    whole, cut = end_of(tmp_path / "whole"), end_of(tmp_path / "cut")
    for key, value in whole.items():
        assert torch.equal(cut[key], value), key

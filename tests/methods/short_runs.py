"""A few steps of a method: in one process or two, stopped or not."""

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.config import Train
from fg_ssl_zoo.data.drawn import DrawnBirds
from fg_ssl_zoo.engine import checkpoint
from fg_ssl_zoo.engine.run_folder import RunFolder
from fg_ssl_zoo.layers.batch_norm import synchronise
from fg_ssl_zoo.methods import create_method
from fg_ssl_zoo.ops.distributed import rank, world_size
from tests.runs import go_on, launch


def build(name, backbone="test_resnet", size=32, seed=0, **options):
    torch.manual_seed(seed)
    return create_method(name, create_backbone(backbone, image_size=size), **options)


def pairs(method, count=8):
    """`images` (count, 2, 32, 32, 3) of drawn birds."""
    images, views = DrawnBirds(count, image_size=32), method.views(32)
    seen = [views(images[i], np.random.default_rng(i))["images"] for i in range(count)]
    return torch.as_tensor(np.stack(seen))


def losses_on(method, images, optimizer, steps):
    """The loss of each step of a training on one batch."""
    losses = []
    for _ in range(steps):
        loss = method({"images": images}).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def one_step(name, options, path):
    """Loss, gradients and state after a forward pass over this process's share of eight pairs."""
    torch.set_num_threads(1)
    Accelerator(cpu=True)
    method = build(name, **options)
    if world_size() > 1:
        synchronise(method, torch.device("cpu"))
    share = 8 // world_size()
    images = pairs(method)[rank() * share : (rank() + 1) * share]
    loss = method({"images": images}).loss
    loss.backward()
    loss = loss.detach()
    gradients = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
    if world_size() > 1:
        for value in (loss, *gradients.values()):
            dist.all_reduce(value)
            value /= world_size()
    found = {"loss": loss, "gradients": gradients, "state": method.state_dict()}
    torch.save(found, path / f"{rank()}.pt")


def by_one_and_by_two(name, options, path):
    """What `one_step` leaves: of one process alone, and of each of two."""
    for folder in ("one", "two"):
        (path / folder).mkdir()
    one_step(name, options, path / "one")
    launch(one_step, name, options, path / "two")
    return [torch.load(path / file) for file in ("one/0.pt", "two/0.pt", "two/1.pt")]


def train(path, images, name, options, *, steps=6):
    """Go on where the folder stops, up to the end; a checkpoint after every second step."""
    settings = Train(
        steps=steps, batch_size=8, optimizer="momentum", lr=0.5, warmup=0.0, checkpoint_every=1
    )
    return go_on(path, images, lambda: build(name, size=64, **options), settings).state_dict()


def drop_newest(path):
    """What a run killed between two checkpoints leaves."""
    folder = RunFolder(path)
    newest = max(checkpoint.positions(folder.checkpoints))
    (folder.checkpoints / newest.file_name).unlink()
    return max(checkpoint.positions(folder.checkpoints)).step


def train_twice(path, images, name, options):
    """State at the end of a run, and of one that was killed in between and went on."""
    whole = train(path, images, name, options)
    assert drop_newest(path) == 4
    return whole, train(path, images, name, options)


def assert_equal_states(found, expected):
    """To the bit, under the same names."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def student(method):
    return nn.Sequential(method.backbone, method.projector)

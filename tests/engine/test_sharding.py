"""A run that is sharded by FSDP2 equals a data parallel one, and its checkpoints are the same."""

import os

import pytest
import torch

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.config import Train
from fg_ssl_zoo.engine import checkpoint, hardware, sharding
from fg_ssl_zoo.engine.checkpoint import Position
from fg_ssl_zoo.methods import create_method
from tests.runs import go_on, launch

SWITCHES = hardware.Switches(
    "cpu", "fp32", channels_last=False, fused_attention=False, keep_memory=False, threads=1
)


def by_class(block):
    return {
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_TRANSFORMER_CLS_TO_WRAP": block,
    }


SMALL = {
    "simclr": {"hidden_size": 16, "projection_size": 8},
    "byol": {"hidden_size": 16, "projection_size": 8},
    "dino": {"hidden_size": 16, "bottleneck": 8, "prototypes": 12},
}


def small_method(name, backbone):
    torch.manual_seed(0)
    return create_method(name, create_backbone(backbone, image_size=64), **SMALL[name]).double()


def in_float64(method):
    """The same from the pixels on: AdamW turns a last digit of a small gradient into a step."""
    normalize = method.backbone.normalize
    for network in method.modules():
        if hasattr(network, "normalize"):
            network.normalize = lambda x: normalize(x).double()
    return method


def train_sharded(path, images, name, backbone, settings, policy):
    fsdp = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", **policy}
    os.environ.update(fsdp)
    build = lambda: in_float64(small_method(name, backbone))  # noqa: E731
    try:
        method = go_on(
            path, images, build, settings, accelerate=lambda: hardware.create_accelerator(SWITCHES)
        )
        assert not any(hasattr(value, "full_tensor") for value in method.parameters())
    finally:
        for variable in fsdp:
            os.environ.pop(variable)


def train_whole(path, images, name, backbone, settings):
    go_on(path, images, lambda: in_float64(small_method(name, backbone)), settings)


def kept(path, step):
    return checkpoint.load(path / "checkpoints" / Position(step=step).file_name)


def settings(optimizer, **others):
    return Train(
        steps=3, batch_size=8, optimizer=optimizer, lr=0.05, checkpoint_every=0.5, **others
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "backbone", "optimizer", "policy"),
    [
        ("byol", "test_vit", "lars", by_class("Block")),
        ("simclr", "test_resnet", "sgd", {}),
        ("dino", "test_vit", "adamw", by_class("Block")),
    ],
)
def test_a_sharded_run_has_the_losses_and_weights_of_a_data_parallel_one(
    tmp_path, birds, name, backbone, optimizer, policy
):
    chosen = settings(optimizer, clip_grad_norm=1.0, accumulate=2)
    launch(train_whole, tmp_path / "whole", birds, name, backbone, chosen)
    launch(train_sharded, tmp_path / "sharded", birds, name, backbone, chosen, policy)
    whole, sharded = kept(tmp_path / "whole", 2), kept(tmp_path / "sharded", 2)
    torch.testing.assert_close(
        sharded["record"]["losses"], whole["record"]["losses"], rtol=1e-6, atol=0
    )
    whole, sharded = kept(tmp_path / "whole", 3), kept(tmp_path / "sharded", 3)
    torch.testing.assert_close(sharded["method"], whole["method"], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(
        sharded["optimizer"]["state"], whole["optimizer"]["state"], rtol=1e-6, atol=1e-9
    )


@pytest.mark.slow
def test_a_sharded_run_goes_on_to_the_bit_and_unsharded_as_one_process(tmp_path, birds):
    run = (birds, "simclr", "test_vit", settings("adamw"))
    launch(train_sharded, tmp_path / "cut", *run, {})
    whole = kept(tmp_path / "cut", 3)
    (tmp_path / "cut" / "checkpoints" / Position(step=3).file_name).unlink()
    second = (tmp_path / "cut" / "checkpoints" / Position(step=2).file_name).read_bytes()
    launch(train_sharded, tmp_path / "cut", *run, by_class("Block"))
    again = kept(tmp_path / "cut", 3)
    for key, value in whole["method"].items():
        assert torch.equal(again["method"][key], value), key
    one = tmp_path / "one" / "checkpoints"
    one.mkdir(parents=True)
    (one / Position(step=2).file_name).write_bytes(second)
    train_whole(tmp_path / "one", *run)
    torch.testing.assert_close(
        kept(tmp_path / "one", 3)["method"], whole["method"], rtol=1e-6, atol=1e-9
    )


def weights_of_a_share(path):
    os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", **by_class("Block"))
    accelerator = hardware.create_accelerator(SWITCHES)
    method = small_method("byol", "test_vit")
    trained = sharding.trained_copy(method, accelerator)
    optimizer = torch.optim.SGD([p for p in trained.parameters() if p.requires_grad], lr=0.1)
    sharding.prepare(trained, optimizer, accelerator)
    own = sharding.own_part(dict(trained.named_parameters()))
    sizes = {name: value.numel() for name, value in own.items()}
    whole = {name: value.numel() for name, value in method.named_parameters()}
    torch.save((sizes, whole), path / f"{accelerator.process_index}.pt")


def test_every_weight_of_student_teacher_and_heads_is_split(tmp_path):
    launch(weights_of_a_share, tmp_path)
    (first, whole), (second, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert {name.partition(".")[0] for name in whole} >= {"backbone", "projector", "teacher"}
    assert {name: first[name] + second[name] for name in whole} == whole
    assert sum(first.values()) < 0.6 * sum(whole.values())


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("FSDP_VERSION", "1", "FSDP_VERSION=1: not supported; set fsdp_version to 2"),
        ("FSDP_OFFLOAD_PARAMS", "true", "set fsdp_offload_params to false"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "set fsdp_activation_checkpointing to false"),
        ("FSDP_AUTO_WRAP_POLICY", "SIZE_BASED_WRAP", "set fsdp_auto_wrap_policy to NO_WRAP"),
        ("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP", "set fsdp_transformer_layer_cls"),
        ("FSDP_IGNORED_MODULES", "head", "shard all modules"),
    ],
)
def test_what_is_not_supported_of_fsdp_is_refused_by_name(monkeypatch, variable, value, message):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=message) as refused:
        sharding.plugin(2, "cpu")
    assert str(refused.value).startswith(f"{variable}={value}: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("Blok", "class 'Blok'; did you mean Block"),
        ("Block,Bottleneck", "class 'Bottleneck'; "),
        ("Block, Mlp", "class ' Mlp'; did you mean Mlp"),
    ],
)
def test_a_class_of_blocks_that_the_network_lacks_is_named(monkeypatch, named, message):
    network = create_backbone("test_vit", image_size=64)
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", named)
    sharding.check_block_classes(network)  # no policy reads it
    for variable, value in by_class(named).items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=message):
        sharding.check_block_classes(network)
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "Block")
    sharding.check_block_classes(network)


def test_an_evaluation_is_not_sharded_and_says_so(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="only trainings are sharded; launch this without FSDP"):
        hardware.create_accelerator(SWITCHES, trains=False)

"""Every method as a transformers model: what it saves, what it opens, and how Trainer goes on."""

import copy
import json

import pytest
import timm
import torch
from accelerate import Accelerator
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForPreTraining, Trainer, TrainingArguments

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.config import Train, load_recipe
from fg_ssl_zoo.data.loader import ViewDataset
from fg_ssl_zoo.engine.loop import Fit, fit
from fg_ssl_zoo.engine.optim import create_optimizer
from fg_ssl_zoo.engine.run_folder import RunFolder
from fg_ssl_zoo.hf_pretraining import (
    FgSslConfig,
    FgSslForPreTraining,
    FollowTheStudent,
    collate_views,
    method_of,
    pictures_for,
)
from fg_ssl_zoo.hub.export import model_config
from fg_ssl_zoo.hub.pretraining import Pretraining, write_pretraining
from fg_ssl_zoo.methods import METHODS, all_options, create_method, method_class
from tests.test_methods import OPTIONS, batch_for, build


def saved(method, name, folder, options=None):
    """The folder `pretraining/` of a method, below `folder`."""
    network = model_config(method.backbone, load_recipe())
    options = all_options(name, OPTIONS.get(name, {}) if options is None else options)
    folder.mkdir(exist_ok=True)
    write_pretraining(folder, network, Pretraining(name, options, method.state_dict()))
    return folder


def opened(folder):
    return AutoModelForPreTraining.from_pretrained(folder, subfolder="pretraining")


def inputs_of(batch):
    return {key: value for key, value in batch.items() if key != "corrupt"}


WHOLE = [name for name in METHODS if not method_class(name).has_outside_teacher]
CASES = [*((name, "test_resnet") for name in WHOLE), ("simclr", "test_vit"), ("dino", "test_vit")]


@pytest.mark.parametrize(("name", "backbone"), CASES)
def test_a_saved_method_goes_on_as_it_would_have(name, backbone, birds, tmp_path):
    method = build(name, backbone)
    places = [x.untyped_storage().data_ptr() for x in method.state_dict().values() if x.numel()]
    assert len(set(places)) == len(places)  # no two share memory, which safetensors would refuse
    model = opened(saved(method, name, tmp_path))
    assert not model.training
    model.train()
    wanted = {key: (p.requires_grad, p.shape) for key, p in method.named_parameters()}
    found = {key: (p.requires_grad, p.shape) for key, p in model.method.named_parameters()}
    assert found == wanted
    torch.testing.assert_close(model.method.state_dict(), method.state_dict(), rtol=0, atol=0)
    batch = batch_for(method, birds)
    torch.manual_seed(1)
    loss = method(batch).loss
    torch.manual_seed(1)
    torch.testing.assert_close(model(**inputs_of(batch)).loss, loss)
    torch.testing.assert_close(model.method.state_dict(), method.state_dict())


def test_what_transformers_saves_it_opens_again_to_the_same(tmp_path):
    model = opened(saved(build("byol", "test_vit"), "byol", tmp_path))
    model.save_pretrained(tmp_path / "again")
    assert {path.name for path in (tmp_path / "again").iterdir()} == {
        "config.json", "model.safetensors",
    }  # fmt: skip
    again = AutoModelForPreTraining.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["model_type"] == "fg_ssl"
    assert "auto_map" not in config  # no code travels with it


def test_buffers_that_no_file_holds_come_back(tmp_path):
    method = create_method("simclr", create_backbone("test_coatnet", image_size=64), hidden_size=8)
    folder = saved(method, "simclr", tmp_path, {"hidden_size": 8})
    model = opened(folder)
    kept = method.state_dict()
    hidden = [name for name, _ in method.named_buffers() if name not in kept]
    found = dict(model.method.named_buffers())
    assert hidden
    for name in hidden:
        assert torch.equal(found[name], method.get_buffer(name)), name


def test_a_model_from_a_configuration_starts_as_timm_starts_it():
    network = model_config(create_backbone("test_resnet", image_size=64), load_recipe())
    network = json.loads(json.dumps(network))
    options = {"hidden_size": 8, "projection_size": 4}
    config = FgSslConfig(method="simclr", options=options, network=network)
    torch.manual_seed(0)
    wanted = method_of(config)
    torch.manual_seed(0)
    model = AutoModelForPreTraining.from_config(config)
    torch.testing.assert_close(model.method.state_dict(), wanted.state_dict(), rtol=0, atol=0)
    torch.manual_seed(0)
    stock = timm.create_model("test_resnet", num_classes=0)
    found = model.method.backbone.model.state_dict()
    torch.testing.assert_close(found, stock.state_dict(), rtol=0, atol=0)


# --------------------------------------------------------------------------- going on

MOCO = {"projection_size": 16, "queue_size": 24, "momentum": 0.8, "momentum_end": 0.8}


@pytest.mark.slow
def test_trainer_goes_on_where_our_loop_stopped(birds, tmp_path):
    """Five steps of ours; the last three again by Trainer, from what was saved after the second."""
    train = Train(
        steps=5, batch_size=8, optimizer="momentum", momentum=0.0, lr=0.1, lr_scaling="none",
        lr_end=1.0, warmup=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    method = create_method("moco", create_backbone("test_resnet", image_size=64), **MOCO)
    losses, states = [], []
    method.register_forward_hook(lambda _, __, output: losses.append(output.loss.item()))
    follow = method.on_step_end

    def after_step(progress: float) -> None:
        follow(progress)
        states.append(copy.deepcopy(method.state_dict()))

    method.on_step_end = after_step
    dataset = ViewDataset(birds, method.views(64), seed=7)
    fit(method, Fit(train, dataset, Accelerator(cpu=True), RunFolder(tmp_path / "run")))
    torch.testing.assert_close(method.state_dict(), states[-1])

    method.load_state_dict(states[1])
    model = opened(saved(method, "moco", tmp_path / "model", MOCO))
    optimizer = create_optimizer(model.method, train)
    trainer = Trainer(
        model,
        TrainingArguments(
            tmp_path / "out", max_steps=3, per_device_train_batch_size=8, max_grad_norm=0.0,
            train_sampling_strategy="sequential", remove_unused_columns=False, use_cpu=True,
            save_strategy="no", logging_steps=1, report_to="none", disable_tqdm=True,
        ),
        data_collator=collate_views,
        train_dataset=pictures_for(model, birds, batch_size=8, steps=3, first_step=2, seed=7),
        callbacks=[FollowTheStudent()],
        optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)),
    )  # fmt: skip
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx(losses[2:], rel=1e-5)
    torch.testing.assert_close(model.method.state_dict(), states[-1], rtol=1e-4, atol=1e-5)


def test_one_picture_for_a_device_is_refused_in_training_and_scored_in_evaluation(birds, tmp_path):
    method = build("simclr", "test_vit")
    model = opened(saved(method, "simclr", tmp_path))
    one = {key: value[:1] for key, value in inputs_of(batch_for(method, birds)).items()}
    assert model(**one).loss == 0
    with pytest.raises(ValueError, match=r"^per_device_train_batch_size: 1 is 1 image .* others"):
        model.train()(**one)


def test_accumulated_parts_are_averaged_and_not_added():
    assert FgSslForPreTraining.accepts_loss_kwargs is False


# --------------------------------------------------------------------------- what is refused


def test_a_value_of_the_wrong_type_is_no_configuration():
    with pytest.raises(StrictDataclassError, match="method"):
        FgSslConfig(method=3)


@pytest.fixture
def folder(tmp_path):
    """A saved SimCLR whose config and weights a test may spoil."""
    return saved(build("simclr", "test_resnet"), "simclr", tmp_path)


def spoil(folder, **changes):
    path = folder / "pretraining" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "simclrr"}, "did you mean simclr"),
        ({"method": "../x"}, "not the name of a method"),
        ({"options": {"hidden_size": 10**9}}, "larger than in any network"),
        ({"options": {"hidden_size": "__import__('os')"}}, "valid integer"),
        ({"options": {"temprature": 1}}, "did you mean temperature"),
        ({"options": {"augmentation": {"jitter": [[[[1]]]]}}}, "neither a number"),
        ({"network": {"architecture": "os.system"}}, "timm knows no"),
    ],
)
def test_a_configuration_is_checked_before_anything_is_built(folder, changes, said):
    spoil(folder, **changes)
    with pytest.raises(ValueError, match=said):
        opened(folder)


def test_weights_from_elsewhere_are_refused(folder):
    network = AutoConfig.from_pretrained(folder, subfolder="pretraining").network
    cfg = {**network["pretrained_cfg"], "url": "http://example.org/model.pth"}
    spoil(folder, network={**network, "pretrained_cfg": cfg})
    with pytest.raises(ValueError, match="nowhere else"):
        opened(folder)


def test_saved_options_fetch_no_weights(monkeypatch):
    asked = []

    def build_phi(self, init):
        asked.append(init)
        torch.nn.Module.__init__(self)

    monkeypatch.setattr("fg_ssl_zoo.methods.srgan.Perceptual.__init__", build_phi)
    network = model_config(create_backbone("test_resnet", image_size=64), load_recipe())
    options = {**OPTIONS["srgan"], "perceptual": "hf-hub:stranger/vgg19"}
    network = json.loads(json.dumps(network))
    method_of(FgSslConfig(method="srgan", options=options, network=network))
    assert asked == ["scratch"]


def test_a_file_that_lacks_a_tensor_or_has_another_is_refused(folder):
    path = folder / "pretraining" / "model.safetensors"
    weights = load_file(path)
    key = "method.projector.0.weight"
    save_file({k: v for k, v in weights.items() if k != key}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"missing keys for simclr: {key}"):
        opened(folder)
    save_file({**weights, "method.more": torch.ones(2)}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"unexpected keys for simclr: method\.more"):
        opened(folder)


def test_a_pickle_is_not_opened(folder):
    path = folder / "pretraining" / "model.safetensors"
    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        opened(folder)

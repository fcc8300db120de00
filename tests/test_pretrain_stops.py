"""Runs that cannot learn: refused before they start, stopped when they diverge."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.config import load_recipe
from fg_ssl_zoo.engine.loop import TrainingStopped
from fg_ssl_zoo.pretrain import main, pretrain
from tests.test_pretrain import RECIPE


@pytest.mark.parametrize(("method", "reason"), [
    ("simclr", "SimCLR compares each image with others of its pass"),
    ("moco", "MoCo has a BatchNorm (backbone.model.conv1.1) that takes the statistics of its pass"),
])  # fmt: skip
@pytest.mark.parametrize(("batch", "parts", "fix"), [
    (8, 8, "use stages[0].train.batch_size=16 or stages[0].train.accumulate=4"),
    (1, 1, "use stages[0].train.batch_size=2"),
])  # fmt: skip
def test_a_pass_of_one_picture_is_refused_before_anything_is_trained(
    recipe, tmp_path, method, reason, batch, parts, fix
):
    words = [f"stages[0].method={method}", "stages[0].options={projection_size: 8}", "output=run"]
    words += [f"stages[0].train.batch_size={batch}", f"stages[0].train.accumulate={parts}"]
    with pytest.raises(ValueError, match=r"^stages\[0\]\.train\.batch_size: ") as refused:
        pretrain(load_recipe(recipe, words))
    over = f"{batch} over 1 process x {parts} accumulated part{'s' if parts > 1 else ''}"
    assert f": {over} is 1 image in a forward pass, but {reason}; {fix}" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_what_a_later_stage_cannot_learn_of_is_refused_before_the_first_one_is_trained(
    recipe, tmp_path
):
    stages = "\n".join(RECIPE.splitlines()[4:7])
    recipe.write_text(RECIPE.replace(stages, f"{stages}\n{stages}"))
    for words, message in (
        (
            ["stages[1].train.accumulate=8"],
            r"^stages\[1\]\.train\.batch_size: 8 over 1 process x 8",
        ),
        (["stages[1].train.accumulate=3"], r"^stages\[1\]\.train\.batch_size: 8 is not divisible"),
    ):
        with pytest.raises(ValueError, match=message):
            pretrain(load_recipe(recipe, ["output=run", *words]))
    assert not (tmp_path / "run").exists()


def test_a_given_queue_of_most_of_the_pictures_is_named_and_a_chosen_one_is_not(recipe, caplog):
    words = ["stages[0].method=moco", "stages[0].train.steps=1", "monitor.every=100", "output=run"]
    words += ["stages[0].options={projection_size: 8}"]
    with caplog.at_level(logging.INFO):
        pretrain(load_recipe(recipe, words))
    assert "stages[0].options.queue_size: 8, by the number of training images" in caplog.text
    assert "more than half" not in caplog.text
    saved = json.loads(Path("run/export/pretraining/config.json").read_text())
    assert saved["options"]["queue_size"] == 8
    words += ["stages[0].options.queue_size=48", "stages[0].train.accumulate=3"]
    with pytest.raises(ValueError, match="is not divisible"):
        pretrain(load_recipe(recipe, words))
    assert "stages[0].options.queue_size: 48 keys are more than half of the 16" in caplog.text


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_run_that_diverges_before_its_first_log_line_is_stopped_and_not_measured(
    recipe, optimizer
):
    words = [
        "stages[0].train.lr=1e9",
        f"stages[0].train.optimizer={optimizer}",
        "monitor.every=0.5",
    ]
    with pytest.raises(TrainingStopped, match=r"(is|are) not finite.* Try a lower train\.lr"):
        pretrain(load_recipe(recipe, words))


def test_start_weights_that_are_no_numbers_are_refused_before_the_folder_is_made(
    recipe, tmp_path, capsys
):
    state = create_backbone("test_resnet", image_size=64).model.state_dict()
    state["layer1.0.conv1.weight"][0, 0, 0, 0] = torch.nan
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(SystemExit):
        main([str(recipe), "init=nan.safetensors"])
    assert capsys.readouterr().err == (
        "error: init: nan.safetensors: layer1.0.conv1.weight holds values that are not finite; "
        "use another init, or delete the checkpoint that holds them to continue from the one "
        "before\n"
    )
    assert not (tmp_path / "runs").exists()

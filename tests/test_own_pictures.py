"""A folder in the place of a recipe: what is chosen for which images, machine and start."""

import re
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from fg_ssl_zoo import cli
from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.backbones.weights.locate import Place
from fg_ssl_zoo.config import Data, RecipeError, load_recipe, parse_recipe, read_yaml
from fg_ssl_zoo.data import datasets
from fg_ssl_zoo.data.datasets import load_splits
from fg_ssl_zoo.engine.signals import Interrupted
from fg_ssl_zoo.hub.export import export
from fg_ssl_zoo.pretrain import main, own_pictures
from fg_ssl_zoo.pretrain.choice import Machine, Pictures, Start, choose, describe
from fg_ssl_zoo.pretrain.own_pictures import measure, recipe_of_words, the_start
from tests.pictures import write_photos

CPU, GPU = Machine(cores=2), Machine(cores=16, gpu_memory=80)
LITE = Start(
    "fgssl_efficientnet_lite1_cub.distillation", "tf_efficientnet_lite1", {}, 128,
    "fgssl_efficientnet_lite1_cub.distillation",
)  # fmt: skip


def pictures(num_train=3000, short_side=300, num_test=600, num_classes=100, name="garden"):
    data = Data(name=name, path="photos")
    return Pictures(data, num_train, num_test, num_classes, short_side)


@pytest.fixture
def photos(tmp_path, monkeypatch, birds):
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos", birds, classes=True)
    return tmp_path / "photos"


# --------------------------------------------------------------------------- the choice


@pytest.mark.parametrize("data", ["cub", "cars"])  # both were measured: docs/own_pictures.md
def test_a_start_is_distilled_from_itself_as_the_recipe_of_the_zoo_does_it(data):
    chosen = choose(pictures(), CPU, LITE)
    ours = load_recipe(f"fgssl_efficientnet_lite1_{data}.distillation")
    (stage,), (theirs,) = chosen.stages, ours.stages
    assert chosen.name == "fgssl_efficientnet_lite1_garden.distillation"
    assert (chosen.backbone, chosen.init) == (ours.backbone, LITE.init)
    assert chosen.data.image_size == ours.data.image_size == 128
    assert stage.options == {"teacher": LITE.teacher, "teacher_size": 192}
    for key in ("steps", "batch_size", "optimizer", "lr", "lr_scaling", "backbone_lr_scale",
                "weight_decay", "warmup", "head_warmup"):  # fmt: skip
        assert getattr(stage.train, key) == getattr(theirs.train, key), key
    assert theirs.options["teacher_size"] == 192
    assert stage.train.norm == "auto"  # which freezes the statistics of a start


def test_random_weights_learn_by_simclr_with_the_settings_of_cub_and_not_of_the_drawn_birds():
    chosen = choose(pictures(num_train=5994), GPU, Start())
    ours = load_recipe("fgssl_resnet50_cub.simclr")
    (stage,), (theirs,) = chosen.stages, ours.stages
    assert (chosen.backbone, chosen.backbone_options) == ("resnet50", ours.backbone_options)
    assert chosen.data.image_size == ours.data.image_size
    assert stage.options == theirs.options
    assert "augmentation" not in stage.options  # the drawn birds' hue
    for key in ("batch_size", "optimizer", "lr", "lr_scaling", "weight_decay"):
        assert getattr(stage.train, key) == getattr(theirs.train, key), key
    passes = stage.train.steps * stage.train.batch_size / 5994
    assert passes == pytest.approx(theirs.train.epochs, rel=0.01)


@pytest.mark.parametrize(
    ("facts", "machine", "backbone", "size", "batch", "steps"),
    [
        ({"num_train": 96}, CPU, "resnet18", 96, 64, 300),
        ({"num_train": 40}, CPU, "resnet18", 96, 32, 250),
        ({"num_train": 10}, CPU, "resnet18", 96, 8, 250),
        ({"num_train": 3000}, CPU, "resnet18", 96, 64, 2000),
        ({"num_train": 3000, "short_side": 64}, CPU, "resnet18", 64, 64, 2000),
        ({"num_train": 3000, "short_side": 20}, CPU, "resnet18", 32, 64, 2000),
        ({"num_train": 500}, GPU, "resnet18", 224, 256, 390),
        ({"num_train": 3000}, Machine(8, 8.0), "resnet50", 224, 32, 18750),
        ({"num_train": 3000}, Machine(8, 24.0), "resnet50", 224, 64, 9375),
        ({"num_train": 3000}, Machine(8, 24.0, 4), "resnet50", 224, 256, 2343),
        ({"num_train": 3000}, Machine(8, 24.0, 3), "resnet50", 224, 255, 2352),
        ({"num_train": 3000, "short_side": 100}, Machine(8, 8.0), "resnet50", 96, 128, 4687),
    ],
)
def test_size_batch_and_steps_follow_pictures_and_machine(
    facts, machine, backbone, size, batch, steps
):
    chosen = choose(pictures(**facts), machine, Start())
    train = chosen.stages[0].train
    assert (chosen.backbone, chosen.data.image_size) == (backbone, size)
    assert (train.batch_size, train.steps) == (batch, steps)


def test_a_start_of_more_pixels_is_read_at_a_size_from_which_its_teacher_has_more_to_see():
    start = Start("a1_in1k", "resnet50", {}, 224, "resnet50@a1_in1k")
    for machine, sizes in ((CPU, (128, 192)), (GPU, (160, 224))):
        chosen = choose(pictures(), machine, start)
        found = chosen.stages[0].options["teacher_size"]
        assert (chosen.data.image_size, found) == sizes
    asked = choose(pictures(), CPU, start, image_size=224)
    assert (asked.data.image_size, asked.stages[0].options["teacher_size"]) == (224, 320)
    patches = Start("lvd142m", "vit_small_patch14_dinov2", {}, 518, "x@lvd142m", divisor=14)
    chosen = choose(pictures(), CPU, patches)
    assert chosen.data.image_size % 14 == chosen.stages[0].options["teacher_size"] % 14 == 0


def test_an_architecture_of_the_users_is_trained_without_options_of_another():
    chosen = choose(pictures(), CPU, Start(backbone="vit_small_patch16_224"))
    assert (chosen.backbone, chosen.backbone_options) == ("vit_small_patch16_224", {})


def test_a_folder_called_as_a_data_set_of_the_zoo_is_not_its_model():
    assert choose(pictures(name="cub"), CPU, LITE).name.startswith(
        "fgssl_efficientnet_lite1_cub_own."
    )


def test_few_pictures_are_measured_some_five_times_and_not_at_every_pass():
    recipe = choose(pictures(num_train=96), CPU, LITE)
    epochs = recipe.stages[0].train.steps * 64 / 96
    assert epochs / recipe.monitor.every == pytest.approx(5)
    assert epochs / recipe.stages[0].train.checkpoint_every == pytest.approx(10)


# --------------------------------------------------------------------------- the facts


def test_a_folder_is_measured(photos):
    data = Data(path=str(photos))
    facts = measure(data, load_splits(data))
    assert facts == Pictures(Data(name="photos", path=str(photos)), 12, 4, 4, 64)


def test_a_folder_without_a_picture_that_can_be_read_is_refused(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.jpg").write_bytes(b"no image")
    data = Data(path=str(tmp_path / "x"))
    with pytest.raises(
        ValueError, match=r"none of the 1 images that were checked in .* can be read \(.*a\.jpg"
    ):
        measure(data, load_splits(data))


def test_the_smallest_released_model_that_saw_most_photographs_is_the_start(monkeypatch, tmp_path):
    names = ["fgssl_resnet50_cub.distillation", "fgssl_efficientnet_lite1_cars.distillation",
             "fgssl_efficientnet_lite1_cub.distillation"]  # fmt: skip
    for name, size, seen in zip(names, (200, 100, 100), (9000, 20, 30), strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"x" * size)
        (tmp_path / name / "results.json").write_text(f'{{"data": {{"num_train": {seen}}}}}')
    stock = {
        **{name.partition(".")[0]: own_pictures.STOCK[name.partition(".")[0]]._replace(
            sha256={"distillation": "0" * 64}) for name in names},
        "fgssl_resnet18_drawn": own_pictures.STOCK["fgssl_resnet18_drawn"],
    }  # fmt: skip
    monkeypatch.setattr(own_pictures, "STOCK", stock)
    monkeypatch.setattr(
        own_pictures, "local_place", lambda name: (Place("checkout", tmp_path / name), [])
    )
    assert own_pictures.released() == names[::-1]
    for broken in ("{", "[]", '{"data": {"num_train": null}}'):
        (tmp_path / names[2] / "results.json").write_text(broken)
        assert own_pictures.released() == [names[1], names[2], names[0]]
    monkeypatch.setattr(own_pictures, "local_place", lambda name: (None, []))
    assert own_pictures.released() == []
    assert the_start(None, None) == Start()


def test_a_folder_of_weights_tells_its_architecture_size_and_words(tmp_path):
    torch.manual_seed(0)
    recipe = load_recipe(overrides=["backbone=test_resnet", "data.image_size=64"])
    export(create_backbone("test_resnet", image_size=64), tmp_path / "x", recipe, {"rows": []})
    start = the_start(str(tmp_path / "x"), None)
    assert (start.backbone, start.image_size, start.teacher) == (
        "test_resnet", 64, str(tmp_path / "x"),
    )  # fmt: skip
    with pytest.raises(RecipeError, match="init: dino also needs backbone="):
        the_start("dino", None)


# --------------------------------------------------------------------------- command line


def test_overrides_come_after_the_choice_and_sizes_before_it(photos):
    words = ["photos/", "init=scratch", "stages.0.train.lr=0.1", "data.image_size=48", "seed=3"]
    recipe, said, _ = recipe_of_words(words)
    assert (recipe.data.image_size, recipe.seed, recipe.stages[0].train.lr) == (48, 3, 0.1)
    assert recipe.name == "fgssl_resnet18_photos.simclr"
    assert "rate      0.1 (adamw)" in said
    assert "size      48 px" in said


def test_every_line_of_the_summary_says_what_changes_it_and_that_is_understood(photos):
    _, said, _ = recipe_of_words(["photos", "init=scratch"])
    rows = said.splitlines()[1:-1]
    assert len(rows) == 10
    hows = [re.split(r"\s{2,}", row)[-1] for row in rows]
    for how in hows:
        if how not in ("RECIPE data.path=FOLDER", "init=runs/NAME"):
            recipe_of_words(["photos", "init=scratch", how])
    facts = pictures(num_test=0)
    said = describe(choose(facts, CPU, LITE), facts, CPU)
    assert "RankMe, since there are no test images" in said
    facts = pictures(num_test=0, num_classes=0)
    assert "RankMe, since there are no labels" in describe(choose(facts, CPU, LITE), facts, CPU)


def test_two_stages_on_the_command_line_are_a_recipe_of_the_users(photos):
    stages = "stages=[{method: simclr}, {method: moco}]"
    recipe, said, splits = recipe_of_words(["photos", "init=scratch", stages])
    assert ([stage.method for stage in recipe.stages], said) == (["simclr", "moco"], None)
    train, test = splits
    assert train.classes == test.classes == sorted(path.name for path in photos.iterdir())
    assert len(train) + len(test) == len(list(photos.rglob("*.png")))


def test_the_recipe_is_printed_as_yaml_that_loads(photos, capsys):
    for run in (main, lambda words: cli.main(["train", *words])):
        run(["--print-recipe", "photos", "init=scratch"])
        (photos.parent / "x.yaml").write_text(capsys.readouterr().out)
        assert parse_recipe(read_yaml("x.yaml")) == recipe_of_words(["photos", "init=scratch"])[0]


def test_a_folder_is_trained_on_with_ten_lines_and_no_yaml(photos, capsys):
    words = ["photos", "backbone=test_resnet", "stages.0.train.steps=2", "data.num_workers=0"]
    cli.main(["train", *words])
    printed = capsys.readouterr().out
    assert "batch     8 images" in printed
    assert "optimizer:" not in printed.partition("trained")[0]
    assert (photos.parent / "runs" / "fgssl_test_resnet_photos.simclr" / "export").is_dir()
    with pytest.raises(SystemExit):
        main(["runs/fgssl_test_resnet_photos.simclr"])
    assert "is the folder of a run" in capsys.readouterr().err


@pytest.mark.slow
def test_the_pictures_are_listed_once_and_what_is_odd_about_them_is_said_once(
    photos, capsys, caplog, monkeypatch
):
    (photos / "notes.txt").write_text("seen in May")
    listed = []
    load_folder = datasets.load_folder
    monkeypatch.setattr(
        datasets, "load_folder", lambda *a, **k: listed.append(a) or load_folder(*a, **k)
    )
    words = ["photos", "backbone=test_resnet", "stages.0.train.steps=1", "data.num_workers=0"]
    cli.main(["train", *words, "seed=5"])
    assert len(listed) == 1
    assert caplog.text.count("; not read: ") == 1
    cli.main(["data", "show", *words, "--images", "2"])
    assert len(listed) == 2


@pytest.mark.slow
def test_labels_never_change_a_training(tmp_path, monkeypatch, birds, capsys):
    monkeypatch.chdir(tmp_path)
    write_photos(
        tmp_path / "sorted", birds, classes=True, split_of=lambda i: "test" if i >= 12 else "train"
    )
    (tmp_path / "flat").mkdir()
    for path in (tmp_path / "sorted" / "train").rglob("*.png"):
        shutil.copy(path, tmp_path / "flat" / f"{path.parent.name}__{path.name}")
    states = []
    for folder in ("sorted", "flat"):
        words = [folder, "backbone=test_resnet", "stages.0.train.steps=3", "data.num_workers=0"]
        cli.main(["train", *words, f"output=runs/{folder}", "data.image_size=48"])
        states.append(load_file(f"runs/{folder}/export/model.safetensors"))
    assert "RankMe, since there are no labels" in capsys.readouterr().out
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("stop", "message", "status"),
    [
        (KeyboardInterrupt(), "stopped between checkpoints; run the same", 130),
        (Interrupted("stopped by SIGTERM after step 3", signal.SIGTERM), "after step 3", 143),
    ],
)
def test_a_stopped_training_says_so_in_one_line(stop, message, status, photos, monkeypatch, capsys):
    def stopped(*_):
        raise stop

    monkeypatch.setattr("fg_ssl_zoo.pretrain.pretrain", stopped)
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "photos", "backbone=test_resnet"])
    assert ended.value.code == status
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["photos", "fgssl_resnet50_cub.simclr"], "two recipes given"),
        (["bird.jpg"], "bird.jpg is an image; name the folder of the images"),
        (["photoz"], "neither a file, a known name nor a folder of images"),
        (["photos", "stages.0.train.lrr=1"], "did you mean lr"),
        (["photos", "init=dino"], "init: dino also needs backbone=ARCHITECTURE"),
        (["photos", "init=runs/none"], "init: there is no folder or file runs/none"),
    ],
)
def test_what_is_typed_wrong_is_one_line(words, message, photos, capsys):
    (photos.parent / "bird.jpg").write_bytes(b"no image")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", *words])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1

"""The whole path: a recipe in, an exported backbone out; and what a user types wrong."""

import json
import os
import subprocess
import sys

import pytest
import timm
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from fg_ssl_zoo.backbones.backbone import weights_fingerprint
from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.cli import main as publish
from fg_ssl_zoo.config import load_recipe
from fg_ssl_zoo.data import tensor_cache
from fg_ssl_zoo.data.datasets import load_splits
from fg_ssl_zoo.data.order import Order
from fg_ssl_zoo.engine import checkpoint
from fg_ssl_zoo.engine.loop import fit
from fg_ssl_zoo.engine.record import Record
from fg_ssl_zoo.evaluation.candidates import candidates
from fg_ssl_zoo.evaluation.monitor import OnlineMonitor
from fg_ssl_zoo.method import FindsParts
from fg_ssl_zoo.methods import create_method, particle
from fg_ssl_zoo.pretrain import main, pretrain
from fg_ssl_zoo.pretrain.inherit import inherit
from fg_ssl_zoo.pretrain.measuring import RunMeasuring
from fg_ssl_zoo.pretrain.rounds import SHOWN
from fg_ssl_zoo.pretrain.run import Run
from tests.pictures import write_photos
from tests.runs import launch, losses, metrics

RECIPE = """
backbone: test_resnet
data: {name: drawn, image_size: 64, num_images: 16, num_classes: 4}
stages:
  - method: simclr
    options: {hidden_size: 16, projection_size: 8}
    train: {steps: 3, batch_size: 8, optimizer: sgd, lr: 0.5}
monitor: {every: 1, k: 3}
"""


def test_a_run_leaves_all_that_the_readme_promises(recipe, tmp_path, capsys):
    main([str(recipe)])
    printed = capsys.readouterr().out
    run = tmp_path / "runs" / "fgssl_test_resnet_drawn.simclr"
    results = json.loads((run / "results.json").read_text())
    assert [row["name"] for row in results["rows"]] == ["untrained", "trained"]
    assert [measured["step"] for measured in results["curve"]] == [0, 2, 3]
    assert results["rows"][0]["knn_top1"] == results["curve"][0]["eval/knn_top1"]
    assert results["data"]["num_train"] == 16
    assert results["protocol"]["knn"] == {
        "k": 3, "temperature": 0.07, "similarity": "cosine", "crop_pct": 0.875, "max_images": None,
    }  # fmt: skip
    assert [line["step"] for line in metrics(run)] == [0, 2, 3, 3]
    assert list((run / "tensorboard").glob("events*"))
    assert sorted(path.name for path in (run / "export").iterdir()) == [
        "README.md", "config.json", "model.safetensors", "pretraining", "recipe.yaml",
        "results.json",
    ]  # fmt: skip
    assert "lr        stages[0]: 0.015625 = 0.5 x 8 / 256\n" in printed
    start, end = (results["rows"][row]["knn_top1"] for row in (0, 1))
    last = printed.rstrip().splitlines()[-1]
    below = f"# below its start: kNN accuracy {start:.1%} before the training, {end:.1%} after it. "
    assert last.startswith(below.replace("%", " %") + "Try a lower train.lr") == (end < start)
    assert "| untrained |" in printed
    assert "hidden_size: 16" in printed

    # The printed lines, word for word, in a process that has never heard of this package.
    lines = printed.split("load it with\n\n")[1]
    check = "\nimport sys\nassert 'fg_ssl_zoo' not in sys.modules\nprint(type(model).__name__)"
    ran = subprocess.run(
        [sys.executable, "-c", lines + check], capture_output=True, text=True, cwd=tmp_path
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "TimmWrapperModel"


@pytest.mark.slow
def test_only_test_pictures_that_were_read_are_counted_also_after_the_end(recipe, tmp_path):
    birds, _ = load_splits(load_recipe(recipe).data)
    write_photos(
        tmp_path / "photos", birds, classes=True, split_of=lambda i: "test" if i < 6 else "train"
    )
    next((tmp_path / "photos" / "test").rglob("*.png")).write_bytes(b"")
    for _ in range(2):
        pretrain(load_recipe(recipe, ["data.path=photos", "output=run"]))
        results = json.loads((tmp_path / "run" / "results.json").read_text())
        assert results["data"]["num_test"] == 5


def test_the_exported_backbone_is_the_one_that_was_trained(recipe):
    backbone = pretrain(load_recipe(recipe))
    exported = timm.create_model(
        f"local-dir:{load_recipe(recipe).folder / 'export'}", pretrained=True
    ).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(exported(x), backbone(x))


@pytest.mark.slow
def test_training_continues_from_a_run_whose_last_row_is_the_new_first(
    recipe, tmp_path, capsys, monkeypatch
):
    weights, measure = [], OnlineMonitor.__call__

    def noted(self, backbone, accelerator):
        weights.append(weights_fingerprint(backbone))
        return measure(self, backbone, accelerator)

    monkeypatch.setattr(OnlineMonitor, "__call__", noted)
    pretrain(load_recipe(recipe, ["output=one", "seed=5"]))
    pretrain(load_recipe(recipe, ["output=two", "init=one", "seed=5"]))
    one, two = (json.loads((tmp_path / n / "results.json").read_text()) for n in ("one", "two"))
    assert [row["name"] for row in two["rows"]] == ["start", "trained"]
    assert [row["init"] for row in two["rows"]] == ["one", "one"]
    measured = ("knn_top1", "rankme", "feature_std")
    for key in measured:
        assert two["rows"][0][key] == pytest.approx(one["rows"][1][key], rel=1e-5), key
    assert "| start |" in capsys.readouterr().out

    # Tables compare both with their networks of step 0, to the bit.
    rows = candidates(["one", "two"], None, with_untrained=True, seed=0)
    assert [row.name for row in rows] == ["one", "test_resnet, untrained", "two"]
    assert [row.start for row in rows] == ["test_resnet, untrained", None, "one"]
    assert [row.identity["weights"] for row in rows[:2]] == [weights[3], weights[0]]
    assert weights[2] == weights[3] != weights[0]
    assert "with the weights of `one`" in (tmp_path / "two" / "export" / "README.md").read_text()


@pytest.mark.slow
def test_the_same_command_again_goes_on_and_ends_with_the_same_results(recipe, tmp_path, capsys):
    main([str(recipe)])
    run = tmp_path / "runs" / "fgssl_test_resnet_drawn.simclr"
    first, weights = metrics(run), (run / "export" / "model.safetensors").read_bytes()
    rows = json.loads((run / "results.json").read_text())["rows"]
    newest = max(checkpoint.positions(run / "checkpoints"))
    (run / "checkpoints" / newest.file_name).unlink()
    main([str(recipe)])
    assert "resume    " in capsys.readouterr().out
    assert (run / "export" / "model.safetensors").read_bytes() == weights
    assert json.loads((run / "results.json").read_text())["rows"] == rows
    again = metrics(run)
    assert [line["step"] for line in again] == [line["step"] for line in first]
    mean = [line["train/loss"] for line in first if "train/loss" in line]
    assert losses(run) == mean  # of all steps since the last line, also of those before the stop
    main([str(recipe)])  # nothing is left to train
    assert (run / "export" / "model.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_runs_of_one_process_may_differ_in_precision(recipe, tmp_path):
    for name, precision in (("one", "fp32"), ("two", "bf16"), ("three", "fp32")):
        pretrain(load_recipe(recipe, [f"output={name}", f"speed.precision={precision}"]))
        hardware = json.loads((tmp_path / name / "results.json").read_text())["hardware"]
        assert f", {precision}, " in hardware
    first, _, third = (losses(tmp_path / name) for name in ("one", "two", "three"))
    assert first == third


def two_runs_of_this_process(path):
    os.environ.pop("FORK_LAUNCHED")  # else Accelerate never destroys the group
    words = ["stages[0].train.steps=1", "monitor.every=100", "speed.threads=1"]
    for name in ("one", "two"):
        pretrain(load_recipe(path, [f"output={name}", *words]))


@pytest.mark.slow
def test_a_process_of_several_may_run_twice(recipe, tmp_path):
    launch(two_runs_of_this_process, recipe)
    one, two = (load_file(tmp_path / n / "export" / "model.safetensors") for n in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    hardware = json.loads((tmp_path / "two" / "results.json").read_text())["hardware"]
    assert "; 2 processes; " in hardware


@pytest.mark.slow
def test_two_stages_and_two_rounds_train_in_order_and_go_on_from_any_of_them(
    recipe, tmp_path, monkeypatch
):
    datasets = []

    def watched(method, job):
        datasets.append(job.dataset)
        return fit(method, job)

    stages = "\n".join(RECIPE.splitlines()[4:7])
    text = RECIPE.replace(stages, f"{stages}\n    rounds: 2\n{stages}\n    inherit: [projector]")
    recipe.write_text(text.replace("steps: 3", "steps: 2, checkpoint_every: 0.5"))
    with monkeypatch.context() as patch:
        patch.setattr("fg_ssl_zoo.pretrain.rounds.fit", watched)
        whole = pretrain(load_recipe(recipe, ["output=whole"]))
    orders = [tuple(Order(16, 16, dataset.seed)(0)) for dataset in datasets]
    assert len(set(orders)) == 3  # two rounds and a stage: each with an order and views of its own
    first, *others = (dataset[0, 0]["images"] for dataset in datasets)
    assert all((first != other).any() for other in others)
    for last in (3, 2):
        pretrain(load_recipe(recipe, ["output=cut"]))
        folder = tmp_path / "cut" / "checkpoints"
        for path in list(checkpoint.positions(folder).values())[-1:]:
            path.unlink()
        assert max(checkpoint.positions(folder)).stage == 1
        cut = pretrain(load_recipe(recipe, ["output=cut"]))
        for key, value in whole.state_dict().items():
            assert torch.equal(cut.state_dict()[key], value), (last, key)
    assert [line["step"] for line in metrics(tmp_path / "whole") if "eval/rankme" in line][-1] == 6


PARTICLE = RECIPE.replace("simclr", "particle").replace("projection_size: 8", """projection_size: 8,
      num_parts: 3, discovery: {size: 16, sample: 1000}""").replace(
    "train: {steps: 3", "rounds: 2\n    train: {checkpoint_every: 0.5, steps: 3"
)  # fmt: skip


@pytest.mark.slow
def test_rounds_discover_parts_anew_and_go_on_wherever_they_were_killed(
    recipe, tmp_path, monkeypatch
):
    recipe = recipe.with_name("fgssl_test_resnet_drawn.particle.yaml")
    recipe.write_text(PARTICLE)
    cache = iter(tmp_path / f"cache_{number}" for number in range(2))
    monkeypatch.setattr(tensor_cache, "cached_assets_path", lambda *_, **__: folder)
    folder = next(cache)
    whole = pretrain(load_recipe(recipe, ["output=whole"]))
    run = tmp_path / "whole"
    notes = [load_file(path)["regions"] for path in sorted((run / "notes").glob("stage*"))]
    assert len(notes) == 2
    shown = {
        name: load_file(run / "notes" / f"shown_stage0_{name}.safetensors")
        for name in ("round0", "round1", "end")
    }
    birds = load_splits(load_recipe(recipe).data)[1]  # the test images
    for found in shown.values():  # 0 would be background
        assert found["parts"].shape[0] == len(found["indices"]) == min(len(birds), SHOWN)
        assert 0 < found["parts"].min() < found["parts"].max()
    assert not torch.equal(shown["round0"]["parts"], shown["end"]["parts"])
    assert not torch.equal(notes[0], notes[1])
    measured = [line for line in metrics(run) if "eval/rankme" in line]
    assert [line["step"] for line in measured] == [0, 2, 3, 5, 6]
    scored = [line for line in measured if "eval/part_nmi" in line]
    assert [line["step"] for line in scored] == [0, 3, 6]
    rows = json.loads((run / "results.json").read_text())["rows"]
    assert [row["part_nmi"] for row in rows] == [scored[i]["eval/part_nmi"] for i in (0, -1)]

    folder, discover, calls = next(cache), particle.discover_parts, []

    def killed_between_the_rounds(*arguments, **options):
        calls.append(1)
        if len(calls) == 5:  # notes, some to look at, scores at the start, scores behind the round
            raise KeyboardInterrupt
        return discover(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(particle, "discover_parts", killed_between_the_rounds)
        with pytest.raises(KeyboardInterrupt):
            pretrain(load_recipe(recipe, ["output=cut"]))
    newest = max(checkpoint.positions(tmp_path / "cut" / "checkpoints"))
    assert (newest.round, newest.step) == (0, 3)
    again = pretrain(load_recipe(recipe, ["output=cut"]))
    for key, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    for number in (0, 1):
        file = tmp_path / "cut" / "notes" / f"stage0_round{number}.safetensors"
        assert torch.equal(load_file(file)["regions"], notes[number])
    assert losses(tmp_path / "cut") == losses(run)

    newest = checkpoint.positions(run / "checkpoints")
    newest[max(newest)].unlink()  # killed within the second round: its notes are read, not taken
    with monkeypatch.context() as patch:
        patch.setattr(particle.Particle, "annotate", lambda *_: pytest.fail("notes taken again"))
        patch.setattr(particle.Particle, "parts", lambda *_, **__: None)
        again = pretrain(load_recipe(recipe, ["output=whole"]))
    for key, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    (run / "notes" / "stage0_round1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"stage0_round1.safetensors is gone; it cannot be"):
        pretrain(load_recipe(recipe, ["output=whole"]))


def test_masks_that_cannot_be_scored_do_not_stop_a_training(birds, monkeypatch, caplog):
    def refuse(*_):
        raise ValueError("3 part masks do not fit")

    monkeypatch.setattr("fg_ssl_zoo.evaluation.parts.scores._agreement_of_some", refuse)
    run = object.__new__(Run)
    for name, value in (("train", birds), ("accelerator", Accelerator(cpu=True))):
        object.__setattr__(run, name, value)
    method = create_method("simclr", create_backbone("test_resnet"), hidden_size=8)

    def parts_of(method):
        return RunMeasuring(run=run, method=method, record=Record()).at_ends()

    assert parts_of(method) == {}  # looks for no parts
    assert not caplog.text

    class Finding(type(method), FindsParts):
        def parts(self, images, accelerator, learn_from=None):
            return torch.zeros(16, 4, 4, dtype=torch.uint8)

    assert parts_of(Finding(create_backbone("test_resnet"), hidden_size=8)) == {}
    assert "part scores are not computed: 3 part masks do not fit" in caplog.text


def test_an_export_does_not_name_the_folder_of_its_run(recipe, tmp_path):
    words = [f"output={tmp_path / 'place'}", "stages.0.train.steps=1", "overwrite=true"]
    pretrain(load_recipe(recipe, words))
    assert not load_recipe(tmp_path / "place" / "export" / "recipe.yaml").overwrite
    for name in ("recipe.yaml", "results.json", "README.md"):
        assert str(tmp_path) not in (tmp_path / "place" / "export" / name).read_text(), name


@pytest.mark.slow
def test_a_share_of_the_start_is_averaged_into_what_a_stage_ends_with(recipe, tmp_path):
    exported = {}
    for share in (0.0, 0.25, 1.0):
        words = [f"stages.0.start_share={share}", f"output={tmp_path / str(share)}"]
        pretrain(load_recipe(recipe, words))
        exported[share] = load_file(tmp_path / str(share) / "export" / "model.safetensors")
    start = load_file(tmp_path / "0.25" / "notes" / "stage0_start.safetensors")
    for key, trained in exported[0.0].items():
        if trained.is_floating_point():
            torch.testing.assert_close(exported[1.0][key], start[key])
            expected = 0.25 * start[key] + 0.75 * trained
            torch.testing.assert_close(exported[0.25][key], expected, rtol=1e-5, atol=1e-6)
    curve = json.loads((tmp_path / "1.0" / "results.json").read_text())["curve"]
    assert curve[-1]["eval/rankme"] == pytest.approx(curve[0]["eval/rankme"], rel=1e-4)
    pretrain(load_recipe(recipe, ["stages.0.start_share=0.25", f"output={tmp_path / '0.25'}"]))
    again = load_file(tmp_path / "0.25" / "export" / "model.safetensors")
    assert all(torch.equal(again[key], value) for key, value in exported[0.25].items())


@pytest.mark.slow
def test_the_distillation_to_the_start_is_a_term_of_the_loss_and_goes_on(recipe, tmp_path):
    words = ["stages.0.start_distillation=100", "stages.0.train.steps=4"]
    pretrain(load_recipe(recipe, [*words, f"output={tmp_path / 'whole'}"]))
    cut = load_recipe(recipe, [*words, f"output={tmp_path / 'cut'}"])
    pretrain(cut)
    newest = max(checkpoint.positions(tmp_path / "cut" / "checkpoints"))
    (tmp_path / "cut" / "checkpoints" / newest.file_name).unlink()
    pretrain(cut)  # reads the start again
    whole, again = (
        load_file(tmp_path / name / "export" / "model.safetensors") for name in ("whole", "cut")
    )
    assert all(torch.equal(again[key], value) for key, value in whole.items())
    term = [line["loss/start"] for line in metrics(tmp_path / "whole") if "loss/start" in line]
    assert 0 < term[-1] < 100


def test_a_stage_inherits_what_both_have_and_a_run_that_goes_on_nothing():
    one, two = (
        create_method("simclr", create_backbone("test_resnet"), hidden_size=8) for _ in range(2)
    )
    before = two.projector[0].weight.clone()
    inherit(two, ["projector"], None)
    assert torch.equal(two.projector[0].weight, before)
    inherit(two, ["projector"], one)
    assert torch.equal(two.projector[0].weight, one.projector[0].weight)
    assert not torch.equal(one.projector[0].weight, before)
    with pytest.raises(ValueError, match="both stages need a module 'projectr'; did you mean proj"):
        inherit(two, ["projectr"], one)


@pytest.mark.slow
def test_an_unlabelled_folder_trains_with_rankme_alone_and_stays_what_was_trained_on(
    recipe, tmp_path, birds, capsys
):
    write_photos(tmp_path / "photos", birds)
    recipe.write_text(f"{RECIPE}hub: {{license: apache-2.0}}  # of the drawn birds")
    words = [str(recipe), "data.path=photos", "data.num_images=null"]
    main(words)
    run = tmp_path / "runs/fgssl_test_resnet_photos.simclr"
    results = json.loads((run / "results.json").read_text())
    assert results["rows"][1].keys() == {"name", "init", "rankme", "feature_std"}
    assert results["data"]["name"] == "photos"
    card = (run / "export" / "README.md").read_text()
    assert "apache" not in card.partition("fg_ssl_zoo is under")[0]
    assert "drawn" not in card
    capsys.readouterr()
    with pytest.raises(SystemExit):
        publish(["publish", str(run), "--dry-run"])
    assert "hub.license is missing (the images of photos: terms" in capsys.readouterr().err

    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    (tmp_path / "photos" / "5.png").write_bytes((tmp_path / "photos" / "6.png").read_bytes())
    with pytest.raises(SystemExit):
        main(words)
    error = capsys.readouterr().err
    assert "has trained on other images (0 added, 0 gone, 1 changed: 5.png)" in error
    assert len(error.splitlines()) == 1
    assert {p: p.read_bytes() for p in before} == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["backbone=resnet81"], "unknown backbone 'resnet81'; did you mean resnet18"),
        (["stages[0].method=simcrl"], "unknown method 'simcrl'; did you mean simclr"),
        (["stages[0].options.temprature=1"], "options.temprature: unknown option of simclr"),
        (["stages[0].train.batch_size=64"], "64 is more than the 16 training images"),
        (["backbone=vit_tiny_patch16_224", "data.image_size=100"],
         "data.image_size: 100 is not divisible by the patch size 16 of vit_tiny_patch16_224; "
         "use 96 or 112"),
        (["data.path=no/such/folder"], "no/such/folder"),
        (["init=a1_in1k"], "init: 'a1_in1k' is neither scratch"),
        (["init=mine.safetensors"], "init: there is no file mine.safetensors"),
        (["init=mine.pth"], "init: mine.pth is a pickle"),
        (["trackers=[wanbd]"], "trackers: unknown 'wanbd'; did you mean wandb"),
        (["trackers=[tensorboard]"], "trackers: tensorboard runs already; remove it"),
        (["trackers=[aim]"], "trackers: aim is not installed; install it, or trackers=[]"),
        (["output=/dev/null"], "output: /dev/null cannot be written"),
        (["output="], "output: the value is empty"),
        ([""], "an argument is empty"),
        (["stages.0.train.optimizer=adma"], "stages[0].train.optimizer: unknown 'adma'; did you"),
        (["stages.0.train.optimizer=adahessian"], "adahessian cannot run here"),
        (["backbone_options={name: x}"], "backbone_options.name: `backbone` names the network"),
        (["stages.0.inherit=[all]"], "init: scratch has no pretraining/"),
        (["stages=[{method: simclr, options: {projection_size: 8}, train: {batch_size: 8}}, "
          "{method: simclr, options: {projection_size: 16}, train: {batch_size: 8}, "
          "inherit: [projector]}]"],
         "stages[1]: inherit: projector.3.weight is (8, 2048) in the stage before and (16, 2048)"),
        (["stages[0].options.augmentation={gray: 1}"], "augmentation.gray: unknown key"),
        (["another_recipe"], "two recipes given"),
    ],
)  # fmt: skip
def test_what_is_typed_wrong_is_one_line_and_loses_nothing(
    recipe, tmp_path, capsys, words, message
):
    with pytest.raises(SystemExit) as stopped:
        main([str(recipe), *words])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.glob("runs/*/checkpoints/*"))


def test_a_used_folder_is_refused_before_anything_is_touched(recipe, tmp_path, capsys):
    main([str(recipe)])
    before = {p: p.read_bytes() for p in (tmp_path / "runs").rglob("*") if p.is_file()}
    with pytest.raises(SystemExit):
        main([str(recipe), "seed=1"])
    error = capsys.readouterr().err
    assert "differs in seed (0 there, 1 here)" in error
    assert "output=FOLDER" in error
    assert "overwrite=true" in error
    assert {p: p.read_bytes() for p in before} == before


@pytest.mark.slow
def test_the_discriminator_is_published_beside_the_backbone(recipe, tmp_path):
    gan = recipe.with_name("fgssl_test_resnet_drawn.srgan.yaml")
    gan.write_text(RECIPE.replace("simclr", "srgan").replace(
        "{hidden_size: 16, projection_size: 8}", "{width: 8, discriminator_width: 16}"
    ))  # fmt: skip
    pretrain(load_recipe(gan))
    run = tmp_path / "runs" / "fgssl_test_resnet_drawn.srgan"
    folder = run / "export_discriminator"
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "fgssl_srgan_discriminator"
    assert config["model_args"] == {"width": 16}  # narrower ones tell these few birds hardly apart
    assert config["pretrained_cfg"]["mean"] == [0.0, 0.0, 0.0]  # it reads pixels
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    newest = checkpoint.positions(run / "checkpoints")
    trained = checkpoint.load(newest[max(newest)])["method"]
    for key, value in model.state_dict().items():
        assert torch.equal(value, trained[f"discriminator.{key}"]), key
    results = json.loads((folder / "results.json").read_text())
    assert (results["companion"], results["name"]) == (
        "discriminator", "fgssl_test_resnet_drawn.srgan_discriminator",
    )  # fmt: skip
    assert [row["name"] for row in results["rows"]] == ["untrained", "trained"]
    assert "It is the discriminator of that training" in (folder / "README.md").read_text()

"""The loop: what it computes and logs, and that a stopped run goes on as if it had not been."""

import itertools
import json
import math
import signal

import pytest
import torch
from accelerate import Accelerator

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.config import Train
from fg_ssl_zoo.data.loader import TooManyCorruptImages, ViewDataset
from fg_ssl_zoo.data.sample import CorruptImage
from fg_ssl_zoo.data.views import RandomViews, augmentations_of
from fg_ssl_zoo.engine import checkpoint
from fg_ssl_zoo.engine.checkpoint import Position
from fg_ssl_zoo.engine.log import JsonlTracker, drop_from
from fg_ssl_zoo.engine.loop import Fit, Interrupted, TrainingStopped, fit
from fg_ssl_zoo.engine.optim import base_lr, create_optimizer, describe_lr, lr_at, schedule
from fg_ssl_zoo.engine.run_folder import RunFolder
from fg_ssl_zoo.evaluation.monitor import losing_start
from fg_ssl_zoo.layers.frozen import norms_of
from fg_ssl_zoo.method import Method, MethodOutput
from fg_ssl_zoo.methods import create_method
from tests.runs import Measures

TRAIN = {"steps": 6, "batch_size": 8, "optimizer": "sgd", "lr": 1.0, "warmup": 0.5}


def method_for(backbone="test_resnet"):
    torch.manual_seed(0)
    small = {"hidden_size": 16, "projection_size": 8}
    return create_method("simclr", create_backbone(backbone, image_size=64), **small)


def job_in(path, images, method, *, start=None, train=None, **options):
    folder = RunFolder(path)
    folder.path.mkdir(parents=True, exist_ok=True)
    found = checkpoint.positions(folder.checkpoints)
    start = start or max(found, default=Position())
    return Fit(
        train=Train(**{**TRAIN, **(train or {})}),
        dataset=ViewDataset(images, method.views(64), seed=0),
        accelerator=Accelerator(cpu=True),
        folder=folder,
        start=start,
        state=checkpoint.load(found[start]) if start in found else None,
        num_workers=0,
        **options,
    )


def trained(path, images, **options):
    method = method_for()
    fit(method, job_in(path, images, method, **options))
    return method.state_dict()


def assert_equal(one, two):
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert torch.equal(value, two[key]), key


class SignalAfter:
    """Views that send a signal to this process when the given step is drawn."""

    def __init__(self, views, calls, number):
        self.views, self.left, self.number = views, calls, number

    def __call__(self, sample, generator):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(self.number)
        return self.views(sample, generator)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_that_goes_on_equals_one_that_was_not_stopped(tmp_path, birds, number):
    whole = trained(tmp_path / "whole", birds)
    method = method_for()
    job = job_in(tmp_path / "cut", birds, method)
    job.dataset.views = SignalAfter(job.dataset.views, calls=3 * 8 - 2, number=number)
    with pytest.raises(Interrupted) as stopped:
        fit(method, job)
    assert stopped.value.code == 128 + number
    assert "after step 3 of 6" in stopped.value.message
    assert "Run the same command again to continue" in stopped.value.message
    assert_equal(trained(tmp_path / "cut", birds), whole)


def test_a_run_killed_between_checkpoints_redoes_the_steps_and_ends_the_same(tmp_path, birds):
    whole = trained(tmp_path / "run", birds)
    folder = RunFolder(tmp_path / "run")
    newest = max(checkpoint.positions(folder.checkpoints))
    (folder.checkpoints / newest.file_name).unlink()
    assert max(checkpoint.positions(folder.checkpoints)).step == 4
    assert_equal(trained(tmp_path / "run", birds), whole)


@pytest.mark.parametrize("norm", ["train", "frozen", "auto"])
@pytest.mark.parametrize("name", ["simclr", "moco"])
def test_frozen_norms_keep_their_statistics_in_student_and_teacher(tmp_path, birds, name, norm):
    method = method_for() if name == "simclr" else create_method(
        "moco", method_for().backbone, projection_size=8, queue_size=8
    )  # fmt: skip
    started = frozenset({"model.bn1"})  # the rest was random before the first stage
    job = job_in(tmp_path, birds, method, train={"norm": norm}, started_norms=started)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    fit(method, job)
    kept = {"train": set(), "frozen": norms_of(method.backbone.model), "auto": {"bn1"}}[norm]
    networks = [x for x in method.modules() if isinstance(x, Backbone)]
    assert len(networks) == (2 if name == "moco" else 1)
    for key, value in method.state_dict().items():
        owner, _, kind = key.rpartition(".")
        if kind == "running_mean" and ".model." in owner:
            assert torch.equal(value, before[key]) == (owner.rpartition(".model.")[2] in kept), key


def test_an_early_measurement_tells_a_start_that_is_being_lost(tmp_path, birds, capsys):
    scores = iter([0.8, 0.5, 0.4])
    method = method_for()
    job = job_in(
        tmp_path, birds, method, measuring=Measures(
            lambda: {"eval/knn_top1": next(scores)}, every=1000, early=2, warning=losing_start
        ),
    )  # fmt: skip
    fit(method, job)
    assert [line["step"] for line in job.record.measurements] == [0, 2, 6]
    said = capsys.readouterr().out
    assert (
        said.count("the start is being lost: kNN accuracy 80.0 % before the training, 50.0 %") == 1
    )
    assert "train.norm=frozen" in said
    assert losing_start([{"eval/knn_top1": 0.8}, {"eval/knn_top1": 0.73}]) is None


def test_two_runs_with_one_seed_agree_to_the_bit(tmp_path, birds):
    assert_equal(trained(tmp_path / "a", birds), trained(tmp_path / "b", birds))


def test_the_log_holds_the_analytic_learning_rate_and_drops_lines_of_a_cut_off_run(tmp_path, birds):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 5, "old": 1}\n{"step": 7, "old": 1}\n{"step": 8, "ol')
    method = method_for()
    job = job_in(tmp_path, birds, method, measuring=Measures(lambda: {"eval/x": 1.0}, every=1))
    drop_from(path, first_step=6, measured=5)
    job.accelerator.log_with.append(JsonlTracker(path))
    job.accelerator.init_trackers("test")
    fit(method, job)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"step": 5, "old": 1}
    assert [line["step"] for line in lines if "eval/x" in line] == [0, 2, 4, 6]
    (last,) = [line for line in lines if "train/lr" in line]
    assert last["step"] == 6
    assert last["train/lr"] == lr_at(job.train, 5 / 6)
    assert last["images_per_second"] > 0
    assert 0 <= last["data_wait"] <= 1


def test_the_rate_is_explained_in_the_headline():
    described = [
        describe_lr(Train(lr=0.4, batch_size=64, lr_scaling=scaling))
        for scaling in ("linear", "sqrt", "none")
    ]
    assert described == [
        "0.1 = 0.4 x 64 / 256",
        "0.2 = 0.4 x sqrt(64 / 256)",
        "0.4 = 0.4 at any batch",
    ]


@pytest.mark.parametrize(("scaling", "factor"), [("linear", 0.25), ("sqrt", 0.5), ("none", 1.0)])
def test_the_rate_follows_the_global_batch(scaling, factor):
    train = Train(lr=0.3, batch_size=64, lr_scaling=scaling, warmup=0.1)
    assert base_lr(train) == pytest.approx(0.3 * factor)
    assert lr_at(train, 0.05) == pytest.approx(0.15 * factor)
    assert lr_at(train, 0.1) == pytest.approx(0.3 * factor)
    assert lr_at(train, 0.55) == pytest.approx(0.15 * factor)
    assert lr_at(train, 1.0) == pytest.approx(0.0)


class Spread(Method):
    """A loss that is a mean over rows, so that parts of a batch add up to the whole."""

    def views(self, image_size):
        return RandomViews(image_size, augmentations_of("fine_grained"), (None, None))

    def forward(self, batch):
        images = self.backbone.normalize(batch["images"].flatten(0, 1))
        return MethodOutput(loss=self.backbone(images).square().mean())


def test_accumulated_parts_train_like_the_whole_batch(tmp_path, birds):
    states = []
    for parts in (1, 2):
        torch.manual_seed(0)
        method = Spread(create_backbone("test_vit", image_size=64))
        fit(method, job_in(tmp_path / str(parts), birds, method, train={"accumulate": parts}))
        states.append(method.state_dict())
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, msg=key)


@pytest.mark.parametrize(
    ("backbone", "named"),
    [("test_resnet", set()), ("test_vit", {"cls_token", "pos_embed"})],
)
def test_biases_norms_and_what_timm_names_are_not_decayed(backbone, named):
    method = method_for(backbone)
    optimizer = create_optimizer(method, Train(optimizer="lars", weight_decay=0.1))
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    without = {f"backbone.model.{name}" for name in named}
    assert without <= {name for name, _ in method.named_parameters()}
    for name, parameter in method.named_parameters():
        decays = parameter.ndim > 1 and name not in without
        assert decay[id(parameter)] == (0.1 if decays else 0.0), name


@pytest.mark.parametrize("name", ["muon", "nadamuon"])
def test_muon_trains_what_is_not_decayed_with_its_fallback(name):
    method = method_for("test_vit")
    table = "blocks.0.mlp.fc1.weight"  # timm alone would give this matrix to Muon
    assert table in dict(method.backbone.model.named_parameters())
    method.backbone.model.no_weight_decay = lambda: {"cls_token", "pos_embed", table}
    optimizer = create_optimizer(method, Train(optimizer=name, lr=0.01))
    for parameter in method.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for key, parameter in method.named_parameters():
        named = key.endswith(("cls_token", "pos_embed", table))
        by_muon = parameter.ndim > 1 and not named
        assert ("momentum_buffer" in optimizer.state[parameter]) == by_muon, key


def test_every_group_has_its_own_rate_and_decay_at_every_step():
    method = create_method("simclr", create_backbone("test_resnet", image_size=64))
    heads = list(method.projector.parameters())
    groups = [
        {"params": list(method.backbone.parameters()), "lr_scale": 0.1},
        {"params": heads[:1]},
        {"params": heads[1:], "constant_lr": True},
    ]
    method.param_groups = lambda: iter(groups)
    train = Train(
        optimizer="sgd", lr=2.0, lr_scaling="none", warmup=0.0, head_warmup=0.25,
        weight_decay=0.04, weight_decay_end=0.4, backbone_lr_scale=0.5,
    )  # fmt: skip
    optimizer = create_optimizer(method, train)
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    backbone, plain, fixed = of[id(groups[0]["params"][0])], of[id(heads[0])], of[id(heads[1])]
    for progress in (0.0, 0.2, 0.25, 0.5, 1.0):
        lr = schedule(optimizer, train, progress)
        half = (1 + math.cos(math.pi * progress)) / 2
        assert lr == plain["lr"] == pytest.approx(2 * half)
        assert backbone["lr"] == pytest.approx(0.0 if progress < 0.25 else 0.1 * half)
        assert fixed["lr"] == 2.0
        assert plain["weight_decay"] == pytest.approx(0.4 - 0.36 * half)
        norms = {id(p) for p in method.parameters() if p.ndim < 2}
        assert all(of[p]["weight_decay"] == 0 for p in norms)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
def test_the_backbone_rests_to_the_bit_while_the_head_warms_up(tmp_path, birds, optimizer):
    method, seen = method_for(), []

    def remember(progress):
        parts = (method.backbone, method.projector)
        seen.append([[p.detach().clone() for p in part.parameters()] for part in parts])

    remember(0.0)
    method.on_step_end = remember
    train = {"head_warmup": 0.5, "optimizer": optimizer, "weight_decay": 0.1, "warmup": 0.0}
    fit(method, job_in(tmp_path, birds, method, train={**train, "lr": 0.1}))
    assert len(seen) == 1 + 6
    for step, (before, after) in enumerate(itertools.pairwise(seen)):
        backbone, head = (
            [torch.equal(a, b) for a, b in zip(*pair, strict=True)]
            for pair in zip(before, after, strict=True)
        )
        assert all(backbone) == (step < 3), step
        assert not any(head)


def test_the_gradient_is_clipped_to_the_norm_that_the_recipe_gives(tmp_path, birds):
    method = method_for()
    before = [p.detach().clone() for p in method.parameters()]
    train = {"steps": 1, "clip_grad_norm": 1e-3, "warmup": 0.0, "lr": 32.0}
    train |= {"optimizer": "momentum", "momentum": 0.0, "weight_decay": 0.0}  # plain descent at 1
    fit(method, job_in(tmp_path, birds, method, train=train))
    moved = [p.detach() - b for p, b in zip(method.parameters(), before, strict=True)]
    assert float(torch.nn.utils.get_total_norm(moved)) == pytest.approx(1e-3, rel=1e-2)


def test_what_a_step_draws_differs_by_process_and_not_by_run(tmp_path, birds, monkeypatch):
    def seeds(rank, name):
        method, seen = method_for(), []
        method.register_forward_pre_hook(lambda *_: seen.append(torch.initial_seed()))
        job = job_in(tmp_path / name, birds, method, train={"steps": 2})
        monkeypatch.setattr(Accelerator, "process_index", rank)
        fit(method, job)
        return seen

    first, again, other = seeds(0, "first"), seeds(0, "again"), seeds(1, "other")
    assert first == again
    assert len({*first, *other}) == 4


def test_an_unknown_optimizer_names_the_nearest():
    with pytest.raises(ValueError, match=r"train\.optimizer: unknown 'adamv'; did you mean adam"):
        create_optimizer(method_for(), Train(optimizer="adamv"))


def test_a_loss_that_is_no_number_stops_with_what_to_try(tmp_path, birds):
    with pytest.raises(TrainingStopped) as stopped:
        trained(tmp_path, birds, train={"lr": 1e30, "warmup": 0.0, "steps": 12})
    message = str(stopped.value)
    assert "the loss is nan" in message
    assert "train.lr" in message
    assert not any(
        math.isnan(float(v.sum()))
        for path in checkpoint.positions(RunFolder(tmp_path).checkpoints).values()
        for v in checkpoint.load(path)["method"].values()
    )


@pytest.mark.parametrize("where", ["weight", "statistics", "optimizer"])
def test_a_checkpoint_with_values_that_are_no_numbers_replaces_no_good_one(tmp_path, birds, where):
    method, optimizers = method_for(), []
    job = job_in(
        tmp_path,
        birds,
        method,
        train={"steps": 3},
        measuring=Measures(lambda: pytest.fail("measured")),
    )
    job.record.measurements.append({"step": 0})
    prepare = job.accelerator.prepare
    job.accelerator.prepare = lambda *of: optimizers.append(prepare(*of)) or optimizers[0]

    def spoil(progress):  # the loss of this step was computed before
        (_, optimizer), last = optimizers[0], method.projector[-1]
        moments = list(optimizer.state.values())[-1]
        spoilt = {"weight": method.projector[-2].weight, "statistics": last.running_var,
                  "optimizer": moments["momentum_buffer"]}  # fmt: skip
        if progress == 1:
            spoilt[where].data.view(-1)[0] = math.inf

    method.on_step_end = spoil
    with pytest.raises(TrainingStopped) as stopped:
        fit(method, job)
    name = {"weight": "projector.3.weight", "statistics": "projector.4.running_var",
            "optimizer": "the optimizer's momentum_buffer of parameter 48"}[where]  # fmt: skip
    message = str(stopped.value)
    assert message.startswith(f"{name} is not finite at step 3 of 3 (learning rate ")
    assert message.endswith(
        "The last good checkpoint is " + str(max(job.folder.checkpoints.iterdir())) + "."
    )
    assert max(checkpoint.positions(job.folder.checkpoints)).step == 2


def test_weights_that_are_no_numbers_are_refused_before_the_first_step(tmp_path, birds):
    method = method_for()
    method.projector[0].weight.data[0, 0] = math.nan
    job = job_in(tmp_path, birds, method, measuring=Measures(lambda: pytest.fail("measured")))
    with pytest.raises(TrainingStopped, match=r"start from: projector\.0\.weight holds values"):
        fit(method, job)


def test_too_many_corrupt_pictures_stop_the_run_and_are_listed(tmp_path, birds):
    class HalfCorrupt:
        name, classes, labels = birds.name, birds.classes, birds.labels

        def __len__(self):
            return len(birds)

        def __getitem__(self, index):
            if index % 2:
                raise CorruptImage(f"image {index}.jpg is truncated")
            return birds[index]

    with pytest.raises(TooManyCorruptImages, match=r"of 16 images cannot be decoded, more than 1%"):
        trained(tmp_path, HalfCorrupt())
    listed = (tmp_path / "corrupt_images.txt").read_text().splitlines()
    assert set(listed) <= {f"image {i}.jpg is truncated" for i in range(1, 16, 2)}
    assert len(listed) == len(set(listed)) >= 1

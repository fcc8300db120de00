import json
import math
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.cli import main
from fg_ssl_zoo.config import Train, parse_words
from fg_ssl_zoo.data.loader import ViewDataset, step_loader
from fg_ssl_zoo.data.order import Order
from fg_ssl_zoo.engine.optim import create_optimizer
from fg_ssl_zoo.evaluation.evaluate import make_task
from fg_ssl_zoo.evaluation.protocols import finetune as module
from fg_ssl_zoo.evaluation.protocols.finetune import Classifier, Finetune, finetune, weights_of
from tests.pictures import write_photos

COUNTS = torch.tensor([4, 4, 4, 4])


def build(name="test_resnet", counts=COUNTS, **options):
    torch.manual_seed(0)
    how = parse_words(Finetune, [f"{key}={value}" for key, value in options.items()], "finetune")
    active = {"zero_init_last": False} if name == "test_resnet" else {}  # or nothing before moves
    return Classifier(create_backbone(name, image_size=64, **active), counts, how)


def batch_of(method, birds):
    dataset = ViewDataset(birds, method.views(64), seed=0)
    return next(iter(step_loader(dataset, Order(len(birds), 8, 0), range(1), num_workers=0)))


@pytest.fixture
def task(birds, tmp_path):
    torch.manual_seed(0)
    backbone = create_backbone("test_resnet", image_size=64).eval()
    return make_task(backbone, birds, birds, Accelerator(cpu=True), crop_pct=1.0, cache=tmp_path)


@pytest.mark.slow
def test_fine_tuning_learns_its_pictures_and_leaves_the_backbone_alone(task):
    before = {key: value.clone() for key, value in task.backbone.state_dict().items()}
    (outcome,) = finetune(task, options=Finetune(epochs=25, batch_size=8))
    assert outcome.metric == "finetune_top1"
    assert outcome.value > 0.7  # chance is a quarter; they are the training images
    assert outcome.settings["epochs"] == 25
    for key, value in task.backbone.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_the_backbone_learns_at_a_tenth_of_the_classifiers_rate():
    method = build("test_vit")
    backbone, classifier = method.param_groups()
    assert backbone["lr_scale"] == 0.1
    assert "lr_scale" not in classifier
    count = len(list(method.parameters()))
    assert len(backbone["params"]) + len(classifier["params"]) == count
    assert next(iter(build(backbone_rate=0.5).param_groups()))["lr_scale"] == 0.5


# --------------------------------------------------------------------------- what is trained


@pytest.mark.parametrize(
    ("name", "train_what", "trained"),
    [
        ("test_resnet", "last_stage", {"layer4"}),
        ("test_resnet", "head", set()),
        ("test_vit", "last_stage", {"blocks.5", "norm"}),
        ("test_vit", "head", set()),
        ("test_vit", "all", {""}),
    ],
)
@pytest.mark.parametrize("head", ["linear", "mlp", "paper"])
def test_one_step_moves_what_is_trained_and_nothing_else(name, train_what, trained, head, birds):
    method = build(name, train_what=train_what, head=head, hidden_size=8)
    optimizer = create_optimizer(method, Train(optimizer="sgd", lr=1.0, weight_decay=0.1))
    optimised = {id(p) for group in optimizer.param_groups for p in group["params"]}
    method.train()
    before = {key: value.clone() for key, value in method.state_dict().items()}
    method(batch_of(method, birds)).loss.backward()
    optimizer.step()
    for key, parameter in method.named_parameters():
        part = key.removeprefix("backbone.model.")
        meant = part.startswith("classifier.") or any(part.startswith(t) for t in trained)
        meant &= not (head == "paper" and part.startswith("norm"))  # behind the map that it reads
        assert parameter.requires_grad == meant, key
        assert (id(parameter) in optimised) == meant, key
        assert torch.equal(parameter, before[key]) != meant, key


@pytest.mark.parametrize("train_what", ["all", "last_stage", "head"])
def test_statistics_move_where_weights_do_and_nowhere_else(train_what, birds):
    method = build(train_what=train_what).train()
    before = {key: value.clone() for key, value in method.named_buffers()}
    method(batch_of(method, birds))
    moved = {key for key, value in method.named_buffers() if not torch.equal(value, before[key])}
    everywhere = {key for key in before if key != "weights"}
    expected = {
        "all": everywhere,
        "last_stage": {key for key in everywhere if ".layer4." in key},
        "head": set(),
    }
    assert moved == expected[train_what]
    assert moved or train_what == "head"


def test_only_the_frozen_parts_rest_and_all_do_in_evaluation():
    method = build("test_vit", train_what="last_stage", dropout=0.5).train()
    model = method.backbone.model
    assert [block.training for block in model.blocks] == [False] * 5 + [True]
    assert model.norm.training
    assert method.classifier[0].training
    assert not model.patch_embed.training
    method.eval()
    assert not any(part.training for part in method.modules())


# --------------------------------------------------------------------------- the head


@pytest.mark.slow
def test_dropout_is_off_where_the_protocol_scores(task, birds, monkeypatch):
    modes = []

    def watched(*arguments, read, **options):
        def reading(backbone, images):
            found = read(backbone, images)
            modes.append(torch.equal(found, read(backbone, images)))
            return found

        return real(*arguments, read=reading, **options)

    real = module.extract
    monkeypatch.setattr(module, "extract", watched)
    finetune(
        task, options=Finetune(epochs=1, batch_size=8, dropout=0.9, head="mlp", hidden_size=32)
    )
    assert modes == [True]
    method = build(dropout=0.9).train()
    batch = batch_of(method, birds)
    assert not torch.equal(method(batch).loss, method(batch).loss)


def test_the_hidden_layer_is_that_of_the_paper():
    method = build(head="mlp", hidden_size=16, dropout=0.7).eval()
    h = torch.randn(5, method.backbone.num_features)
    (first, _, dropout, last) = method.classifier
    hidden = h @ first.weight.T + first.bias
    hidden = torch.where(hidden > 0, hidden, 0.2 * hidden)
    torch.testing.assert_close(method.classifier(h), hidden @ last.weight.T + last.bias)
    assert dropout.p == 0.7


def test_the_papers_head_reads_the_whole_generators_map_and_has_95_million_weights():
    with torch.device("meta"):
        head = module.paper_head(64, 4 * 88, 1024, 0.5, 5)
        map_of_88_pixels = torch.empty(1, 64, 352, 352)
        assert head(map_of_88_pixels).shape == (1, 5)
    assert sum(p.numel() for p in head[4].parameters()) == 3 * 176 * 176 * 1024 + 1024
    generator = {"num_blocks": 4, "width": 8, "upsample": True}
    backbone = create_backbone("fgssl_srresnet", image_size=16, **generator)
    how = Finetune(head="paper", drop_last_blocks=3, hidden_size=8, dropout=0.9)
    method = Classifier(backbone, COUNTS, how).eval()
    assert len(method.backbone.model.blocks) == 1
    assert method.classifier[4].in_features == 3 * 32 * 32
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(
        method.classify(x), method.classifier(backbone.model.forward_features(x))
    )


def test_blocks_are_cut_off_the_generator_only():
    with pytest.raises(ValueError, match=r"drop_last_blocks: test_resnet is not the generator"):
        build(drop_last_blocks=1)
    short = create_backbone("fgssl_srresnet", image_size=16, num_blocks=2, width=8)
    with pytest.raises(ValueError, match="2 of 2 blocks leave none; use 0 to 1"):
        Classifier(short, COUNTS, Finetune(drop_last_blocks=2))


# --------------------------------------------------------------------------- class weights


def test_class_weights_at_known_counts():
    counts = torch.tensor([1, 4, 16, 0])
    torch.testing.assert_close(weights_of(counts, "none"), torch.tensor([1.0, 1, 1, 0]))
    inverse = torch.tensor([7, 7 / 4, 7 / 16, 0])  # 21 / (3 n)
    torch.testing.assert_close(weights_of(counts, "inverse"), inverse)
    root = torch.tensor([3, 3 / 2, 3 / 4, 0])  # 21 / (1 + 2 + 4) / sqrt(n)
    torch.testing.assert_close(weights_of(counts, "sqrt_inverse"), root)


@pytest.mark.parametrize("how", ["inverse", "sqrt_inverse"])
def test_the_rarest_class_never_weighs_less_than_the_commonest(how):
    # The released code weighs in proportion to the counts, so that rare classes count even less.
    counts = torch.tensor([1087, 2189, 2386, 13158, 2577])  # cassava
    weights = weights_of(counts, how)
    assert weights[counts.argmin()] == weights.max()
    assert weights[counts.argmax()] == weights.min()
    assert (weights * counts).sum().item() == pytest.approx(counts.sum().item())


def test_the_loss_is_the_mean_of_the_weighted_terms(birds):
    counts = torch.tensor([1, 3, 5, 7])
    method = build(counts=counts, class_weights="inverse").eval()
    batch = batch_of(method, birds)
    output = method(batch)
    logits = method.classifier(method.backbone(method.backbone.normalize(batch["images"][:, 0])))
    expected = sum(
        16
        / (4 * int(counts[y]))
        * (math.log(sum(math.exp(v) for v in row)) - row[y])  # inverse: N / (K n_y)
        for row, y in zip(logits.tolist(), batch["label"].tolist(), strict=True)
    )
    assert output.loss.item() == pytest.approx(expected / 8, rel=1e-5)
    plain = build(counts=counts).eval()(batch).loss
    torch.testing.assert_close(plain, torch.nn.functional.cross_entropy(logits, batch["label"]))


def test_a_class_without_pictures_is_never_in_the_way(task):
    more = replace(task, classes=[*task.classes, "dodo"])
    how = Finetune(epochs=1, batch_size=8, class_weights="inverse", train_what="head")
    (outcome,) = finetune(more, options=how)
    right = outcome.predictions == task.test.labels
    assert right.shape == (len(task.test.labels),)
    assert outcome.value == pytest.approx(float(right.double().mean()))


# --------------------------------------------------------------------------- refusals and records


def test_a_batch_of_one_picture_is_refused_for_a_network_with_batch_norm(task):
    with pytest.raises(
        ValueError, match=r"^finetune\.batch_size: 1 over 1 process x 1 .* BatchNorm"
    ):
        finetune(task, options=Finetune(batch_size=1))


def test_labels_that_say_nothing_are_refused(task):
    unlabelled = replace(task, train=replace(task.train, labels=None))
    with pytest.raises(ValueError, match="finetune needs labels; put each class into a fo"):
        finetune(unlabelled)
    alike = replace(task, train=replace(task.train, labels=torch.zeros(16, dtype=torch.int64)))
    with pytest.raises(ValueError, match="2 classes or more; the training images have one"):
        finetune(alike)
    labels = task.train.labels.clone()
    labels[labels == 2] = 1
    labels[3] = 2
    lonely = replace(task, train=replace(task.train, labels=labels))
    with pytest.raises(ValueError, match="finetune needs several images per class; 1 of 4"):
        finetune(lonely)


@pytest.mark.slow
def test_the_command_takes_the_variant_and_writes_it_down(birds, tmp_path):
    write_photos(
        tmp_path / "garden", birds, classes=True, split_of=lambda i: "test" if i >= 12 else "train"
    )
    main(
        [
            *["eval", "test_resnet@scratch", "--data", str(tmp_path / "garden")],
            *["--image-size", "64", "--protocols", "knn", "finetune", "--cache", str(tmp_path)],
            *["--finetune", "epochs=1", "batch_size=4", "train_what=last_stage", "lr=1e-2"],
            *["class_weights=sqrt_inverse", "dropout=0.5", "--out", str(tmp_path / "out")],
        ]
    )
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    settings = results["rows"][0]["scores"]["finetune_top1"]["settings"]
    said = {
        "epochs": 1, "batch_size": 4, "train_what": "last_stage", "lr": 0.01, "head": "linear",
        "class_weights": "sqrt_inverse", "dropout": 0.5, "backbone_rate": 0.1,
    }  # fmt: skip
    assert {key: settings[key] for key in said} == said
    assert settings["augmentation"]["crop_scale"] == [1 / 3, 1.0]
    assert "train_what" not in results["rows"][0]["scores"]["knn_top1"]["settings"]


def test_a_batch_larger_than_the_data_is_all_of_it(birds, tmp_path):
    backbone = create_backbone("test_vit", image_size=32).eval()
    task = make_task(backbone, birds, birds, Accelerator(cpu=True), cache=tmp_path)
    (outcome,) = finetune(task, options=Finetune(epochs=1))
    assert outcome.settings["batch_size"] == len(birds)

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.config import Monitor
from fg_ssl_zoo.data.drawn import DrawnBirds
from fg_ssl_zoo.data.fixed_views import CentreView
from fg_ssl_zoo.data.loader import TooManyCorruptImages
from fg_ssl_zoo.evaluation import monitor as monitor_module
from fg_ssl_zoo.evaluation.monitor import Collapsed, OnlineMonitor, refuse_collapse
from fg_ssl_zoo.features.extract import Features, evenly, extract, few_unreadable
from tests.pictures import SomeCorrupt


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return create_backbone("test_resnet", image_size=48)


def test_features_equal_one_picture_after_another(backbone, birds):
    found = extract(backbone, birds, Accelerator(cpu=True), crop_pct=1.0, batch_size=5)
    backbone.eval()
    for index in range(len(birds)):
        pixels = CentreView(48, 1.0)(birds[index], np.random.default_rng(0))["image"]
        with torch.no_grad():
            expected = backbone(backbone.normalize(torch.from_numpy(pixels)[None]))[0]
        torch.testing.assert_close(found.features[index], expected, rtol=1e-4, atol=1e-4)
    assert found.labels.tolist() == birds.labels.tolist()


def test_unreadable_pictures_are_left_out_with_their_labels(backbone, birds):
    some = SomeCorrupt(birds, corrupt=(0, 7))
    found = extract(backbone, some, Accelerator(cpu=True))
    kept = [i for i in range(16) if i not in (0, 7)]
    assert found.indices.tolist() == kept
    assert found.labels.tolist() == [birds.labels[i] for i in kept]
    assert len(found.features) == 14


def test_many_unreadable_pictures_are_refused_and_few_are_named():
    birds = DrawnBirds(100, num_classes=4, image_size=32)

    def lines(*corrupt, labelled=True):
        some = SomeCorrupt(birds, corrupt, labelled=labelled)
        indices = torch.tensor([i for i in range(100) if i not in corrupt], dtype=torch.int64)
        return few_unreadable(some, Features(indices[:, None], None, indices))

    assert lines() == []
    assert lines(7) == ["7.jpg is truncated"]
    with pytest.raises(TooManyCorruptImages, match=r"2 of 100 .*, more than 1% .7.jpg is.*; 8.jpg"):
        lines(7, 8)
    with pytest.raises(TooManyCorruptImages, match=r"none of the 100 .*; \.\.\."):
        lines(*range(100), labelled=False)
    birds.labels[:] = 1
    birds.labels[7] = 0
    with pytest.raises(TooManyCorruptImages, match=rf"no image of class {birds.classes[0]} can"):
        lines(7)
    assert lines(7, labelled=False) == ["7.jpg is truncated"]


def test_a_run_names_test_pictures_that_cannot_be_read_once(backbone, birds, caplog, monkeypatch):
    measure = monitor(birds, test=SomeCorrupt(birds, [3]))
    for _ in range(2):
        measure(backbone, Accelerator(cpu=True))
    (line,) = caplog.messages
    assert line == "1 of 16 images of drawn cannot be read and are not measured: " + (
        "3.jpg is truncated"
    )
    monkeypatch.setattr(monitor_module, "rank", lambda: 1)  # another process says nothing
    monitor(birds, test=SomeCorrupt(birds, [3]))(backbone, Accelerator(cpu=True))
    assert len(caplog.messages) == 1
    with pytest.raises(TooManyCorruptImages, match=r"none of the 16 images of drawn can be read"):
        monitor(birds, test=SomeCorrupt(birds, range(16)))(backbone, Accelerator(cpu=True))


def test_extracting_changes_neither_mode_nor_statistics(backbone, birds):
    backbone.train()
    backbone.model.bn1.eval()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    extract(backbone, birds, Accelerator(cpu=True))
    assert backbone.training
    assert not backbone.model.bn1.training
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_limit_takes_pictures_evenly():
    assert evenly(10, None) == list(range(10))
    assert evenly(10, 4) == [0, 3, 6, 9]
    assert evenly(3, 8) == [0, 1, 2]


def monitor(birds, **options):
    options = {"train": birds, "test": birds, "settings": Monitor(k=1), "crop_pct": 1.0, **options}
    return OnlineMonitor(**options)


def test_a_set_that_votes_on_itself_is_always_right(backbone, birds):
    measured = monitor(birds)(backbone, Accelerator(cpu=True))
    assert measured["eval/knn_top1"] == 1.0
    assert 1 <= measured["eval/rankme"] <= 16


def test_unlabelled_pictures_have_rank_and_spread_only(backbone, birds):
    for options in ({"test": None}, {"train": SomeCorrupt(birds, labelled=False)}):
        measured = monitor(birds, **options)(backbone, Accelerator(cpu=True))
        assert measured.keys() == {"eval/rankme", "eval/feature_std"}


def test_equal_features_are_a_collapse(birds):
    dead = create_backbone("test_vit", image_size=48)
    for parameter in dead.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.ones_(dead.model.norm.bias)
    found = monitor(birds)(dead, Accelerator(cpu=True))
    with pytest.raises(Collapsed, match=r"features have collapsed: their std is 0 .* Try a lower"):
        refuse_collapse(found, [])

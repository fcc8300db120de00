"""Images that are deleted or damaged while a run reads them."""

import json
import os

import pytest

from fg_ssl_zoo.backbones.create import open_backbone
from fg_ssl_zoo.data.sample import CorruptImage
from fg_ssl_zoo.engine import checkpoint, loop
from fg_ssl_zoo.engine.loop import TooManyCorruptImages
from fg_ssl_zoo.pretrain import main
from tests.engine.test_loop import trained
from tests.pictures import write_photos
from tests.runs import launch


class Unreadable:
    """Birds of which some cannot be read."""

    def __init__(self, birds, bad):
        self.birds, self.bad = birds, bad
        self.name, self.classes, self.labels = birds.name, birds.classes, birds.labels

    def __len__(self):
        return len(self.birds)

    def __getitem__(self, index):
        if index in self.bad:
            raise CorruptImage(f"image {index}.jpg is gone")
        return self.birds[index]


def train_with_bad_pictures(path, birds, share):
    loop.MOST_CORRUPT = share
    try:
        trained(path, Unreadable(birds, {3, 11}), train={"steps": 4})
    except TooManyCorruptImages as error:
        (path / f"refused{os.getpid()}").write_text(str(error))


@pytest.mark.slow
def test_unreadable_pictures_of_both_processes_are_counted_once_in_one_file(tmp_path, birds):
    launch(train_with_bad_pictures, tmp_path / "some", birds, 0.5)
    lines = (tmp_path / "some" / "corrupt_images.txt").read_text().splitlines()
    assert sorted(lines) == ["image 11.jpg is gone", "image 3.jpg is gone"]
    launch(train_with_bad_pictures, tmp_path / "many", birds, 0.1)  # each saw one: 0.0625
    refused = list((tmp_path / "many").glob("refused*"))
    assert len(refused) == 2
    assert all(path.read_text().startswith("2 of 16 images cannot be decoded") for path in refused)


def delete(path):
    path.unlink(missing_ok=True)


def damage(path):
    path.write_bytes(b"no image")


def train(tmp_path, birds, monkeypatch, harm, *names):
    """Train on 12 images with 4 to test, and do harm to some at the first checkpoint."""
    photos, run, save = tmp_path / "photos", tmp_path / "run", checkpoint.save
    write_photos(photos, birds, classes=True, split_of=lambda n: "train" if n < 12 else "test")

    def save_and_harm(*arguments):
        for name in names:
            for path in photos.rglob(name):
                harm(path)
        return save(*arguments)

    monkeypatch.setattr(loop, "MOST_CORRUPT", 0.1)
    monkeypatch.setattr(checkpoint, "save", save_and_harm)
    main([
        "backbone=test_resnet", f"data={{path: {photos}, image_size: 64}}", f"output={run}",
        "stages[0].options={hidden_size: 16, projection_size: 8}",
        "stages[0].train={steps: 6, batch_size: 8, optimizer: sgd, checkpoint_every: 1}",
        "monitor={every: 9, k: 3}",
    ])  # fmt: skip
    return run


@pytest.mark.parametrize("harm", [delete, damage])
@pytest.mark.slow
def test_a_picture_that_is_lost_in_a_run_is_skipped_and_named(tmp_path, birds, monkeypatch, harm):
    run = train(tmp_path, birds, monkeypatch, harm, "3.png", "13.png")
    (line,) = (run / "corrupt_images.txt").read_text().splitlines()
    assert "3.png" in line
    for folder in (run, run / "export"):
        data = json.loads((folder / "results.json").read_text())["data"]
        assert (data["num_unreadable"], data["num_test"]) == (1, 3)
    assert open_backbone(str(run)).num_features


@pytest.mark.parametrize(("pattern", "message"), [
    ("train/*/*", "error: none of the 12 images can be decoded; "),
    ("test/*/*", "error: none of the 4 images of photos can be read ("),
])  # fmt: skip
@pytest.mark.parametrize("harm", [delete, damage])
def test_all_pictures_of_a_split_lost_in_a_run_are_one_line(
    tmp_path, birds, monkeypatch, capsys, harm, pattern, message
):
    with pytest.raises(SystemExit) as ended:
        train(tmp_path, birds, monkeypatch, harm, pattern)
    assert ended.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(message)
    assert ".png" in line
    assert list((tmp_path / "run" / "checkpoints").glob("*.pt"))

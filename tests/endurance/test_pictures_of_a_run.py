"""Pictures that are deleted or damaged while a run reads them."""

import json
import os

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
            raise CorruptImage(f"picture {index}.jpg is gone")
        return self.birds[index]


def train_with_bad_pictures(path, birds, share):
    loop.MOST_CORRUPT = share
    try:
        trained(path, Unreadable(birds, {3, 11}), train={"steps": 4})
    except TooManyCorruptImages as error:
        (path / f"refused{os.getpid()}").write_text(str(error))


def test_unreadable_pictures_of_both_processes_are_counted_once_in_one_file(tmp_path, birds):
    launch(train_with_bad_pictures, tmp_path / "some", birds, 0.5)
    lines = (tmp_path / "some" / "corrupt_images.txt").read_text().splitlines()
    assert sorted(lines) == ["picture 11.jpg is gone", "picture 3.jpg is gone"]
    launch(train_with_bad_pictures, tmp_path / "many", birds, 0.1)  # each saw one: 0.0625
    refused = list((tmp_path / "many").glob("refused*"))
    assert len(refused) == 2
    assert all(path.read_text().startswith("2 of 16 images cannot be decoded") for path in refused)


def test_a_picture_that_is_deleted_in_a_run_is_skipped_and_named(tmp_path, birds, monkeypatch):
    write_photos(tmp_path / "photos", birds)
    save = checkpoint.save

    def save_and_delete(*arguments):
        (tmp_path / "photos" / "3.png").unlink(missing_ok=True)
        return save(*arguments)

    monkeypatch.setattr(loop, "MOST_CORRUPT", 0.1)
    monkeypatch.setattr(checkpoint, "save", save_and_delete)
    run = tmp_path / "run"
    words = [
        "backbone=test_resnet", f"data={{path: {tmp_path / 'photos'}, image_size: 64}}",
        "stages[0].options={hidden_size: 16, projection_size: 8}", f"output={run}",
        "stages[0].train={steps: 6, batch_size: 8, optimizer: sgd}", "monitor={every: 9, k: 3}",
    ]  # fmt: skip
    main(words)
    assert "3.png" in (run / "corrupt_images.txt").read_text()
    results = json.loads((run / "export" / "results.json").read_text())
    assert results["data"]["num_unreadable"] == 1

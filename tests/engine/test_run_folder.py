import json

import pytest

from fg_ssl_zoo.config import Data, load_recipe, to_yaml
from fg_ssl_zoo.data.datasets import fingerprint, load_images
from fg_ssl_zoo.engine.run_folder import RunFolder, RunFolderTaken
from tests.pictures import write_photos


def claim(path, *overrides, pictures=None):
    recipe = load_recipe(overrides=[f"output={path}", *overrides])
    folder = RunFolder(recipe.folder)
    folder.claim(recipe, {"train": pictures, "test": None})
    folder.lock.release()  # as a run does at its end
    return folder


def test_a_new_folder_gets_the_resolved_recipe(tmp_path):
    folder = claim(tmp_path / "run")
    assert load_recipe(folder.recipe) == load_recipe(overrides=[f"output={tmp_path / 'run'}"])


def test_the_same_recipe_goes_on_also_with_other_loggers_and_workers(tmp_path):
    folder = claim(tmp_path / "run")
    (folder.path / "metrics.jsonl").write_text("{}\n")
    claim(tmp_path / "run", "trackers=[wandb]", "data.num_workers=3", "monitor.every=2")
    assert (folder.path / "metrics.jsonl").read_text() == "{}\n"
    kept = load_recipe(folder.recipe)
    assert (kept.trackers, kept.data.num_workers, kept.monitor.every) == (("wandb",), 3, 2)


def test_a_run_goes_on_after_recipes_have_got_a_new_key(tmp_path):
    folder = claim(tmp_path / "run")
    written = folder.recipe.read_text()
    older = "\n".join(line for line in written.splitlines() if "head_warmup" not in line)
    assert older != written.rstrip()
    folder.recipe.write_text(older)
    claim(tmp_path / "run")
    folder.recipe.write_text(older + "\nforgotten: 1\n")
    with pytest.raises(RunFolderTaken, match="forgotten"):
        claim(tmp_path / "run")


def test_another_recipe_is_refused_with_the_difference_and_both_remedies(tmp_path):
    claim(tmp_path / "run")
    with pytest.raises(RunFolderTaken) as raised:
        claim(tmp_path / "run", "stages[0].train.lr=7", "seed=3")
    message = str(raised.value)
    assert "stages[0].train.lr" in message
    assert "7" in message
    assert "seed (0 there, 3 here)" in message
    assert "output=FOLDER" in message
    assert "overwrite=true" in message
    assert "\n" not in message


def test_overwrite_deletes_what_a_run_wrote_and_names_the_rest(tmp_path, caplog):
    folder = claim(tmp_path / "run")
    disk = tmp_path / "disk"
    folder.checkpoints.rename(disk)
    folder.checkpoints.symlink_to(disk)
    written = [
        "checkpoints/stage0_round0_step00000180.pt", "notes/shown_stage0_round0.safetensors",
        "pictures/stage0_round0_step00000180.png", "tensorboard/events.out.tfevents.1.host",
        "export/pretraining/model-00001-of-00002.safetensors", "export_teacher/README.md",
        ".export.123/config.json", "metrics.jsonl", "results.json", "corrupt_images.txt",
    ]  # fmt: skip
    foreign = ["old.txt", "checkpoints/mine.pt", "notes/ideas.md", "photos/a.jpg"]
    for name in (*written, *foreign):
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).write_text("x")
    claim(tmp_path / "run", "seed=3", "overwrite=true")
    kept = [p.relative_to(folder.path) for p in folder.path.rglob("*") if p.is_file()]
    assert {*map(str, kept), "checkpoints/mine.pt"} == {
        "recipe.yaml", "data.json", "run.lock", *foreign
    }  # fmt: skip
    assert sorted(path.name for path in disk.iterdir()) == ["mine.pt", "recipe.yaml"]
    assert not folder.export.exists()
    assert "checkpoints/mine.pt, notes/ideas.md, old.txt and 1 more" in caplog.text
    assert not load_recipe(folder.recipe).overwrite  # giving this file again deletes nothing


def test_overwrite_refuses_what_would_stop_the_export_at_the_end(tmp_path):
    folder = claim(tmp_path / "run")
    folder.export.mkdir()
    (folder.export / "notes.txt").write_text("x")
    with pytest.raises(RunFolderTaken, match=r"no run wrote export/notes\.txt in"):
        claim(tmp_path / "run", "overwrite=true")
    assert folder.recipe.is_file()


def test_resume_never_refuses_even_the_same_recipe(tmp_path):
    claim(tmp_path / "run")
    with pytest.raises(RunFolderTaken, match=r"already holds a run.*resume=auto"):
        claim(tmp_path / "run", "resume=never")


@pytest.mark.parametrize("overrides", [[], ["overwrite=true"]])
@pytest.mark.parametrize("recipe", [None, "flour: 500 g\n", "[1, 2]", "a model"])
def test_a_folder_with_other_files_is_never_touched(tmp_path, overrides, recipe):
    (tmp_path / "thesis.txt").write_text("years of work")
    if recipe == "a model":
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "recipe.yaml").write_text(to_yaml(load_recipe()))
    elif recipe:
        (tmp_path / "recipe.yaml").write_text(recipe)
    with pytest.raises(RunFolderTaken, match="holds files that are not a run"):
        claim(tmp_path, *overrides)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("place", ["file", "file/below", "/dev/null", "x" * 300])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path, place):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"cannot be written|holds files") as raised:
        claim(tmp_path / place)
    assert "\n" not in str(raised.value)


# --------------------------------------------------------------------------- images


@pytest.fixture
def photos(tmp_path, birds):
    write_photos(tmp_path / "photos", birds)
    return tmp_path / "photos"


def claim_photos(folder, photos):
    images = load_images(Data(path=str(photos)), "train")
    run = claim(folder, f"data.path={photos}", "data.name=garden", pictures=images)
    run.checkpoints.mkdir(exist_ok=True)
    (run.checkpoints / "stage0_round0_step00000003.pt").write_bytes(b"trained")
    return run


def test_a_run_goes_on_with_its_own_pictures_only(tmp_path, photos):
    written = claim_photos(tmp_path / "run", photos).data.read_bytes()
    claim_photos(tmp_path / "run", photos)
    (photos / "3.png").rename(photos / "103.png")
    (photos / "4.png").unlink()
    with pytest.raises(RunFolderTaken) as raised:
        claim_photos(tmp_path / "run", photos)
    message = str(raised.value)
    assert "other images (1 added, 2 gone, 0 changed: 103.png, 3.png, 4.png)" in message
    for remedy in ("restore the images", "output=FOLDER", "overwrite=true"):
        assert remedy in message
    assert "\n" not in message
    assert (tmp_path / "run" / "data.json").read_bytes() == written


def test_a_moved_folder_with_the_same_pictures_goes_on(tmp_path, photos):
    claim_photos(tmp_path / "run", photos)
    photos.rename(tmp_path / "moved")
    claim_photos(tmp_path / "run", tmp_path / "moved")


def test_a_run_that_differs_in_its_names_only_says_how_it_goes_on(tmp_path):
    before = load_recipe(claim(tmp_path / "run").recipe)
    with pytest.raises(RunFolderTaken) as raised:
        claim(tmp_path / "run", "name=fgssl_resnet18_birds.simclr")
    words = f"name={before.name}"
    assert str(raised.value).endswith(f"; if the images are the same, {words} continues it")
    claim(tmp_path / "run", words)
    with pytest.raises(RunFolderTaken, match=r"overwrite=true$"):
        claim(tmp_path / "run", "name=fgssl_resnet18_birds.simclr", "seed=3")


def test_pictures_may_be_repaired_before_a_step_was_kept(tmp_path, photos):
    run = claim_photos(tmp_path / "run", photos)
    next(run.checkpoints.glob("*.pt")).unlink()
    (photos / "4.png").unlink()
    claim_photos(tmp_path / "run", photos)


def test_a_run_that_is_older_than_inventories_is_compared_by_its_fingerprint(tmp_path, photos):
    run = claim_photos(tmp_path / "run", photos)
    run.data.unlink()
    data = {"fingerprint": fingerprint(load_images(Data(path=str(photos)), "train"))}
    (run.path / "results.json").write_text(json.dumps({"data": data}))
    claim_photos(tmp_path / "run", photos)
    run.data.unlink()
    (photos / "4.png").unlink()
    message = r"fingerprint \w+ there, \w+ here.; restore the images"
    with pytest.raises(RunFolderTaken, match=message):
        claim_photos(tmp_path / "run", photos)

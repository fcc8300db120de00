"""Embedding files: what is in them, and that nothing can break them."""

import json
import os
import shutil

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors import safe_open

import fg_ssl_zoo
from fg_ssl_zoo.cli import main
from fg_ssl_zoo.config import Data
from fg_ssl_zoo.data.datasets import all_splits
from fg_ssl_zoo.data.drawn import DrawnBirds
from fg_ssl_zoo.data.fixed_views import CentreView
from fg_ssl_zoo.features import embed_dataset as module
from fg_ssl_zoo.features.embed_dataset import embed
from fg_ssl_zoo.features.embedder import load
from fg_ssl_zoo.features.embedding_file import EmbeddingFile, embeddings_of, read_about
from tests.pictures import write_photos
from tests.runs import launch

MODEL = "test_resnet@scratch"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Class folders with 14 training and 9 test images, one of them cut off."""
    root = tmp_path_factory.mktemp("photos")
    birds = DrawnBirds(23, num_classes=3, image_size=64, seed=0)
    write_photos(root, birds, classes=True, split_of=lambda i: "train" if i < 14 else "test")
    broken = next((root / "train").rglob("5.png"))
    broken.write_bytes(broken.read_bytes()[:100])
    return root


@pytest.fixture
def embedder():
    return exact()


def exact(model=MODEL, image_size=48):
    """In fp32 on any processor."""
    return load(model, image_size=image_size, accelerator=Accelerator(cpu=True))


def splits_of(root, **options):
    return all_splits(Data(path=str(root), **options))


def write(embedder, root, out, **options):
    options = {"model": MODEL, "batch_size": 2, "part_rows": 4, **options}
    return embed(embedder, splits_of(root), out, **options)


def rows_of(path):
    return pq.read_table(path).to_pydict()


# --------------------------------------------------------------------------- what is in a file


@pytest.mark.parametrize("model", [MODEL, "test_vit@scratch"])
def test_every_row_equals_a_plain_loop_over_the_pictures(photos, tmp_path, model):
    embedder = exact(model)
    done = write(embedder, photos, tmp_path / "x.parquet", model=model)
    rows = rows_of(done.path)
    number = 0
    for split, images in splits_of(photos).items():
        for index in range(len(images)):
            if images.paths[index].endswith("/5.png"):
                continue
            pixels = CentreView(48)(images[index], np.random.default_rng(0))["image"]
            with torch.no_grad():
                expected = embedder.backbone(
                    embedder.backbone.normalize(torch.from_numpy(pixels)[None])
                )[0]
            found = torch.tensor(rows["embedding"][number])
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
            label = int(images.labels[index])
            assert (rows["split"][number], rows["index"][number]) == (split, index)
            assert (rows["file"][number], rows["label"][number]) == (images.paths[index], label)
            assert rows["class"][number] == images.classes[label]
            number += 1
    assert (number, done.num_rows) == (22, 22)


def test_an_unreadable_picture_is_skipped_and_named(embedder, photos, tmp_path):
    done = write(embedder, photos, tmp_path / "x.parquet")
    (line,) = (tmp_path / "x.parquet.skipped.txt").read_text().splitlines()
    assert done.skipped == [line]
    assert "/5.png" in line
    assert read_about(done.path)["result"] == {"rows": 22, "skipped": 1}


def test_a_row_group_is_a_part_so_nobody_needs_all_rows(embedder, photos, tmp_path):
    done = write(embedder, photos, tmp_path / "x.parquet")
    file = pq.ParquetFile(done.path)
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert sorted(sizes) == [1, 2, 3, 4, 4, 4, 4]  # 14 in fours less one unreadable, then 9
    assert [len(rows) for rows, _ in EmbeddingFile(done.path).chunks()] == sizes


def test_the_three_formats_agree(embedder, photos, tmp_path):
    for suffix in ("parquet", "npz", "safetensors"):
        write(embedder, photos, tmp_path / f"x.{suffix}")
    table = pq.read_table(tmp_path / "x.parquet")
    rows = table.to_pydict()
    with np.load(tmp_path / "x.npz", allow_pickle=False) as arrays:
        assert json.loads(str(arrays["about"])) == read_about(tmp_path / "x.parquet")
        np.testing.assert_array_equal(arrays["embedding"], embeddings_of(table))
        assert arrays["embedding"].dtype == np.float32
        for name in ("file", "split", "index", "label", "class"):
            assert arrays[name].tolist() == rows[name], name
    with safe_open(tmp_path / "x.safetensors", framework="np") as tensors:
        np.testing.assert_array_equal(tensors.get_tensor("embedding"), embeddings_of(table))
        assert tensors.get_tensor("label").tolist() == rows["label"]
        assert bytes(tensors.get_tensor("file")).decode().split("\0") == rows["file"]
        assert bytes(tensors.get_tensor("class")).decode().split("\0") == rows["class"]
    assert read_about(tmp_path / "x.safetensors") == read_about(tmp_path / "x.parquet")
    assert not list(tmp_path.glob("*.parts")) + list(tmp_path.glob(".*"))


def test_unlabelled_pictures_have_no_label_column(embedder, photos, tmp_path):
    loose = tmp_path / "loose"
    loose.mkdir()
    for path in sorted((photos / "test").rglob("*.png")):
        shutil.copy(path, loose)
    done = write(embedder, loose, tmp_path / "x.parquet")
    assert pq.read_schema(done.path).names == ["file", "split", "index", "embedding"]
    assert done.num_rows == 9


# --------------------------------------------------------------------------- interruptions


@pytest.mark.parametrize("suffix", ["parquet", "npz", "safetensors"])
@pytest.mark.parametrize("parts", [0, 1, 3])
def test_after_an_interruption_the_file_is_the_same_to_the_bit(
    embedder, photos, tmp_path, monkeypatch, suffix, parts
):
    whole, broken = tmp_path / f"whole.{suffix}", tmp_path / f"broken.{suffix}"
    write(embedder, photos, whole)
    writes, real = [], module.write_table

    def interrupted(path, table, about):
        if len(writes) == parts:
            path.with_name(f".{path.name}.1").write_bytes(b"half a part")
            raise KeyboardInterrupt
        writes.append(path)
        real(path, table, about)

    monkeypatch.setattr(module, "write_table", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(embedder, photos, broken)
    monkeypatch.setattr(module, "write_table", real)
    assert not broken.exists()
    done = write(embedder, photos, broken)
    assert (done.found, done.made) == (parts, 7 - parts)
    assert broken.read_bytes() == whole.read_bytes()
    assert not (tmp_path / f"broken.{suffix}.parts").exists()


def test_any_missing_part_is_made_again(embedder, photos, tmp_path, monkeypatch):
    whole, gappy = tmp_path / "whole.parquet", tmp_path / "gappy.parquet"
    write(embedder, photos, whole)
    with monkeypatch.context() as patch:
        patch.setattr(module, "merge", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write(embedder, photos, gappy)
    for number in (0, 4):
        (tmp_path / "gappy.parquet.parts" / f"{number:05}.parquet").unlink()
    done = write(embedder, photos, gappy)
    assert (done.found, done.made) == (5, 2)
    assert gappy.read_bytes() == whole.read_bytes()


def test_a_complete_file_is_left_alone(embedder, photos, tmp_path):
    out = tmp_path / "x.parquet"
    write(embedder, photos, out)
    before = out.stat().st_mtime_ns
    again = write(embedder, photos, out)
    assert (again.found, again.made, again.num_rows, len(again.skipped)) == (7, 0, 22, 1)
    assert out.stat().st_mtime_ns == before
    write(embedder, photos, out, overwrite=True)
    assert out.stat().st_mtime_ns > before


@pytest.mark.parametrize("complete", [True, False])
def test_another_model_or_other_pictures_are_refused(
    embedder, photos, tmp_path, monkeypatch, complete
):
    out = tmp_path / "x.parquet"
    if not complete:
        monkeypatch.setattr(module, "merge", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write(embedder, photos, out)
    else:
        write(embedder, photos, out)
    with pytest.raises(ValueError, match=r"differs in architecture .test_resnet there, test_vit"):
        write(exact("test_vit@scratch"), photos, out)
    with pytest.raises(ValueError, match=r"image_size .48 there, 64 here.; choose .*--overwrite"):
        write(exact(image_size=64), photos, out)
    with pytest.raises(ValueError, match=r"pictures\.train"):
        write(embedder, photos / "test", out)


@pytest.mark.parametrize("suffix", ["parquet", "npz"])
def test_a_picture_that_is_replaced_under_its_name_is_embedded_again(embedder, tmp_path, suffix):
    folder, out, lines = tmp_path / "photos", tmp_path / f"x.{suffix}", []
    for number in range(12):
        bmp(folder / f"{number}.bmp", number)
    (folder / "1.bmp").write_bytes(b"broken")
    write(embedder, folder, out)
    assert write(embedder, folder, out).made == 0

    for path in folder.iterdir():  # a copy with other times
        os.utime(path, (1, 1))
    assert write(embedder, folder, out).made == 0

    bmp(folder / "6.bmp", 200)
    again = write(embedder, folder, out, say=lines.append)
    assert (again.found, again.made) == ((2, 1) if suffix == "parquet" else (0, 3))
    assert lines[0] == "images of 1 of 3 parts have changed and are computed again"
    assert len(again.skipped) == 1
    write(embedder, folder, tmp_path / "fresh.parquet")
    rows = np.array(rows_of(tmp_path / "fresh.parquet")["embedding"], np.float32)
    found = rows_of(out)["embedding"] if suffix == "parquet" else np.load(out)["embedding"]
    np.testing.assert_array_equal(np.array(found, np.float32), rows)


def test_a_picture_above_the_bound_is_embedded_once_the_bound_is_higher(
    embedder, tmp_path, monkeypatch
):
    for number in range(3):
        bmp(tmp_path / "photos" / f"{number}.bmp", number)
    cv2.imwrite(str(tmp_path / "photos" / "large.bmp"), np.zeros((9, 9, 3), np.uint8))
    monkeypatch.setenv("FG_SSL_ZOO_MAX_PIXELS", "72")
    assert write(embedder, tmp_path / "photos", tmp_path / "x.parquet").num_rows == 3
    assert write(embedder, tmp_path / "photos", tmp_path / "x.parquet").made == 0
    monkeypatch.setenv("FG_SSL_ZOO_MAX_PIXELS", "81")
    assert write(embedder, tmp_path / "photos", tmp_path / "x.parquet").num_rows == 4


def test_a_file_name_that_is_no_utf_8_is_refused_before_any_work(embedder, photos, tmp_path):
    with pytest.raises(ValueError, match=r"--out .*/caf\\xe9\.parquet holds bytes"):
        write(embedder, photos, tmp_path / os.fsdecode(b"caf\xe9.parquet"))
    assert not list(tmp_path.iterdir())


def bmp(path, shade):
    """Every one is a file of the same size."""
    path.parent.mkdir(exist_ok=True)
    pixels = np.zeros((8, 9, 3), np.uint8)
    pixels[:4] = shade
    cv2.imwrite(str(path), pixels)


def test_parts_of_replaced_pictures_are_not_gone_on_with(embedder, tmp_path, monkeypatch):
    for number in range(12):
        bmp(tmp_path / "photos" / f"{number}.bmp", number)
    with monkeypatch.context() as patch:
        patch.setattr(module, "merge", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write(embedder, tmp_path / "photos", tmp_path / "x.parquet")
    bmp(tmp_path / "photos" / "6.bmp", 200)
    done = write(embedder, tmp_path / "photos", tmp_path / "x.parquet")
    assert (done.found, done.made) == (2, 1)
    write(embedder, tmp_path / "photos", tmp_path / "fresh.parquet")
    assert (tmp_path / "fresh.parquet").read_bytes() == (tmp_path / "x.parquet").read_bytes()


def two_processes(root, folder):
    embedder = exact()
    done = write(embedder, root, folder / "two.parquet")
    assert done.num_rows == 22


def test_two_processes_write_the_file_of_one(embedder, photos, tmp_path):
    write(embedder, photos, tmp_path / "one.parquet")
    launch(two_processes, photos, tmp_path)
    assert (tmp_path / "two.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()


# --------------------------------------------------------------------------- the command


def command(out, *words):
    main(["embed", MODEL, "--image-size", "48", "--out", str(out), "--data", *map(str, words)])


def test_the_command_takes_all_splits_or_one(photos, tmp_path, capsys):
    command(tmp_path / "all.parquet", photos)
    assert "22 images, 96 features each" in (printed := capsys.readouterr().out)
    assert "1 images that cannot be read" in printed
    command(tmp_path / "test.npz", photos, "--split", "test")
    assert "9 images" in capsys.readouterr().out
    command(tmp_path / "all.parquet", photos)
    assert "nothing to do" in capsys.readouterr().out
    command(tmp_path / "drawn.parquet", "drawn", "num_images=8", "num_classes=4")
    assert rows_of(tmp_path / "drawn.parquet")["file"][0] == "drawn[0]"


@pytest.mark.parametrize(
    ("out", "data", "message"),
    [
        ("x.csv", "photos", r"the suffix is one of .parquet .npz .safetensors"),
        ("x.parquet", "phots/", r"did you mean photos"),
        ("x.parquet", "empty", r"empty is empty"),
        ("note.npz", "photos", r"note.npz exists and is not a file of `fgssl embed`"),
        ("y.parquet", "photos", r"y.parquet.parts holds files that `fgssl embed` did not"),
        ("z.parquet", "broken", r"none of the 2 images can be read"),
    ],
)
def test_what_is_typed_wrong_is_one_line(photos, tmp_path, monkeypatch, capsys, out, data, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(photos)
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.npz").write_text("a note")
    (tmp_path / "y.parquet.parts").mkdir()
    (tmp_path / "y.parquet.parts" / "mine.txt").write_text("mine")
    (tmp_path / "broken").mkdir()
    for name in "ab":
        (tmp_path / "broken" / f"{name}.jpg").write_bytes(b"no image")
    with pytest.raises(SystemExit) as stopped:
        command(out, data)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


# --------------------------------------------------------------------------- notebooks


def test_load_embeds_files_folders_pictures_and_arrays_alike(photos, tmp_path):
    model = fg_ssl_zoo.load(MODEL, image_size=48, accelerator=Accelerator(cpu=True))
    folder = photos / "test"
    paths = [path for path in photos.rglob("*.png") if "test" in path.parts]
    paths.sort(key=lambda path: (path.parent.name, int(path.stem)))
    rows = model.embed(folder)
    assert (rows.shape, rows.dtype) == ((9, 96), np.float32)
    arrays = [cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) for path in paths]
    for given in (paths, [str(p) for p in paths], arrays, np.stack(arrays),
                  [Image.fromarray(array) for array in arrays]):  # fmt: skip
        np.testing.assert_array_equal(model.embed(given), rows)
    np.testing.assert_allclose(model.embed(arrays, batch_size=2), rows, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.embed(paths[3])[0], rows[3], rtol=1e-4, atol=1e-5)
    assert model.embed([]).shape == (0, 96)


def test_load_refuses_what_is_no_picture(photos, tmp_path):
    model = fg_ssl_zoo.load(MODEL, image_size=48, accelerator=Accelerator(cpu=True))
    broken = next((photos / "train").rglob("5.png"))
    for given, message in (
        ([np.zeros((2, 8, 8), np.uint8), broken], r"not an array uint8 \(2, 8, 8\)"),
        (np.zeros((8, 8, 3), np.float32), "not an array float32"),
        ([torch.zeros(3, 8, 8)], "not Tensor"),
        (tmp_path / "none.jpg", "there is no image"),
        (tmp_path / "none", "there is no folder"),
        (tmp_path, "there are no images in"),
        ([next((photos / "test").rglob("*.png")), broken], "5.png"),
    ):
        with pytest.raises(ValueError, match=message):
            model.embed(given)

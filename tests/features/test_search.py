"""Search: the neighbours that brute force finds, and clear words for the rest."""

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.cli import main
from fg_ssl_zoo.config import Data
from fg_ssl_zoo.data.datasets import all_splits
from fg_ssl_zoo.data.drawn import DrawnBirds
from fg_ssl_zoo.features.embed_dataset import embed
from fg_ssl_zoo.features.embedder import load
from fg_ssl_zoo.features.embedding_file import EmbeddingFile, part_table, write_table
from fg_ssl_zoo.features.search import check_same_model, search
from tests.pictures import write_photos

MODEL = "test_resnet@scratch"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve images of three classes and their index in parts of four."""
    root = tmp_path_factory.mktemp("birds")
    birds = DrawnBirds(12, num_classes=3, image_size=64, seed=1)
    write_photos(root / "photos", birds, classes=True)
    splits = all_splits(Data(path=str(root / "photos")))
    out = root / "x.parquet"
    embed(load(MODEL, image_size=48), splits, out, model=MODEL, batch_size=2, part_rows=4)
    return root


def test_search_equals_brute_force_over_all_rows(folder):
    index = EmbeddingFile(folder / "x.parquet")
    rows = np.concatenate([rows for rows, _ in index.chunks()])
    queries = np.random.default_rng(0).normal(size=(3, rows.shape[1])).astype(np.float32)
    for query, hits in zip(queries, search(index, queries, k=5), strict=True):
        lengths = [np.linalg.norm(row) * np.linalg.norm(query) for row in rows]
        cosine = [float(row @ query / length) for row, length in zip(rows, lengths, strict=True)]
        expected = sorted(range(len(rows)), key=lambda row: -cosine[row])[:5]
        assert [hit.row for hit in hits] == expected
        np.testing.assert_allclose([h.similarity for h in hits], sorted(cosine)[:-6:-1], rtol=1e-5)
    assert len(search(index, queries[:1], k=99)[0]) == 12


def test_equal_rows_keep_their_order_across_parts(tmp_path):
    index = folder_of_equals(tmp_path / "x.parquet")
    assert [hit.row for hit in search(index, np.ones((1, 3), np.float32), k=4)[0]] == [0, 1, 2, 3]


def test_an_index_of_other_pixels_is_refused(folder):
    index = EmbeddingFile(folder / "x.parquet")
    backbone = load(MODEL, image_size=48).backbone
    check_same_model(index, backbone, MODEL)
    del index.about["interpolation"]  # as version 0.1.0 wrote it, with another filter
    with pytest.raises(ValueError, match=r"differ in interpolation \(None there, bicubic here\)"):
        check_same_model(index, backbone, MODEL)


def folder_of_equals(path):
    table = part_table(
        np.ones((6, 3), np.float32), files=list("abcdef"), split="train",
        indices=np.arange(6), labels=None, classes=[], labelled=False,
    )  # fmt: skip
    write_table(path, table, {"format": "fg_ssl_zoo embeddings, 1"})
    return EmbeddingFile(path)


def query(folder, *words, model=MODEL, index="x.parquet"):
    main(["search", model, "--index", str(folder / index), "--query", *map(str, words)])


def test_a_picture_of_the_index_finds_itself_and_the_sheet_shows_it(folder, tmp_path, capsys):
    pictures = sorted((folder / "photos").rglob("*.png"))[:2]
    out = tmp_path / "sheets" / "near.png"
    query(folder, *pictures, "--k", "3", "--out", out)
    lines = capsys.readouterr().out.splitlines()
    for number, picture in enumerate(pictures):
        assert lines[4 * number] == str(picture)
        rank, similarity, *_, file = lines[4 * number + 1].split()
        assert (rank, similarity) == ("1", "1.0000")
        assert picture.as_posix().endswith(file)
        assert picture.parent.name in lines[4 * number + 1]
    sheet = cv2.imread(str(out))
    assert sheet.shape[:2] == (4 + 2 * (16 + 128 + 4), 4 + 4 * (128 + 4))
    np.testing.assert_array_equal(sheet[20:148, 4:132], sheet[20:148, 136:264])  # query, itself


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        (["note.txt"], {}, "note.txt: not an image"),
        (["none.jpg"], {}, "there is no image none.jpg"),
        (["none"], {}, "error: there is no folder none"),
        (["bird.png"], {"index": "none.parquet"}, "there is no file"),
        (["bird.png"], {"index": "note.txt"}, "is not a .parquet file of `fgssl embed`"),
        (["bird.png"], {"index": "other.parquet"}, "is not a .parquet file of `fgssl embed`"),
        (["bird.png"], {"index": "empty.parquet"}, "holds no images"),
        (["bird.png"], {"model": "test_vit@scratch"}, "was made with test_resnet@scratch"),
        (["bird.png", "--out", "x.jpg"], {}, "the suffix of a sheet is .png"),
    ],
)
def test_what_is_typed_wrong_is_one_line(
    folder, monkeypatch, tmp_path, capsys, words, options, message
):
    monkeypatch.chdir(folder)
    (folder / "note.txt").write_text("a note")
    cv2.imwrite("bird.png", np.full((40, 40, 3), 90, np.uint8))
    index = EmbeddingFile(folder / "x.parquet")
    _, columns = next(index.chunks())
    write_table(folder / "other.parquet", columns, {})
    write_table(folder / "empty.parquet", columns.slice(0, 0), index.about)
    with pytest.raises(SystemExit) as stopped:
        query(folder, *words, **options)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_an_index_whose_pictures_moved_away_searches_without_a_sheet(folder, tmp_path, capsys):
    splits = all_splits(Data(num_images=8, num_classes=4, image_size=64))
    embed(load(MODEL, image_size=48), splits, tmp_path / "d.parquet", model=MODEL)
    picture = next((folder / "photos").rglob("*.png"))
    words = ["search", MODEL, "--index", str(tmp_path / "d.parquet"), "--query", str(picture)]
    main(words)
    assert "drawn[" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*words, "--out", str(tmp_path / "x.png")])
    assert "are not files" in capsys.readouterr().err


def test_other_options_of_the_same_weights_are_another_model(folder, tmp_path):
    weights = create_backbone("test_resnet", image_size=48).model.state_dict()
    save_file(weights, tmp_path / "w.safetensors")
    average, largest = (
        f"test_resnet{{global_pool: {kind}}}@{tmp_path}/w.safetensors" for kind in ("avg", "max")
    )
    splits, out = all_splits(Data(path=str(folder / "photos"))), tmp_path / "x.parquet"
    embed(load(average, image_size=48), splits, out, model=average)
    check_same_model(EmbeddingFile(out), load(average.replace("{global_pool: avg}", ""),
                                              image_size=48).backbone, "the default")  # fmt: skip
    difference = r"options.global_pool \(default there, max here\)"
    with pytest.raises(ValueError, match=rf"{difference}; search with that model"):
        check_same_model(EmbeddingFile(out), load(largest, image_size=48).backbone, largest)
    with pytest.raises(ValueError, match=rf"differs in {difference}; choose another file"):
        embed(load(largest, image_size=48), splits, out, model=largest)


def test_another_seeds_weights_are_another_model(folder, monkeypatch):
    index = EmbeddingFile(folder / "x.parquet")
    model = load(MODEL, image_size=48)
    before = index.about["weights"]
    with torch.no_grad():
        next(model.backbone.parameters()).add_(1e-3)
    with pytest.raises(
        ValueError, match=rf"weights .{before} there, .*search with that model, or embed"
    ):
        check_same_model(index, model.backbone, MODEL)

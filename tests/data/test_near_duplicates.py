"""Overlap: planted copies are found whatever was done to them, and other images are not."""

import csv
import html
import json

import cv2
import imagehash
import numpy as np
import pytest
from PIL import Image

from fg_ssl_zoo.cli import main
from fg_ssl_zoo.config import Data, recipe_of
from fg_ssl_zoo.data import near_duplicates as module
from fg_ssl_zoo.data.datasets import all_splits
from fg_ssl_zoo.data.near_duplicates import compare_splits, hash_view, hashes_of
from fg_ssl_zoo.pretrain import pretrain

CLASSES = ("crow", "jay")


def scene(seed, height=96, width=120):
    """An image with coarse and fine structure that no other seed draws."""
    generator = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3))
    for cells, weight in ((4, 0.6), (12, 0.3), (40, 0.1)):
        noise = generator.integers(0, 256, (cells, cells, 3)).astype(np.float32)
        picture += weight * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return picture.clip(0, 255).astype(np.uint8)


def write(path, picture, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, **how)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Forty training images; of the thirty test images, 0 to 4 are copies of them."""
    root = tmp_path_factory.mktemp("planted")
    for number in range(40):
        write(root / "train" / CLASSES[number % 2] / f"{number}.png", scene(number))
    test = {number: scene(1000 + number) for number in range(30)}
    small = cv2.resize(scene(8), (60, 48), interpolation=cv2.INTER_AREA)
    test |= {0: scene(10), 2: np.ascontiguousarray(scene(12)[:, ::-1]), 3: small}
    for number, picture in test.items():
        write(root / "test" / CLASSES[number % 2] / f"{number}.png", picture)
    write(root / "test" / "jay" / "1.jpg", scene(11), quality=30)
    (root / "test" / "jay" / "1.png").unlink()
    write(root / "test" / "crow" / "4.jpg", scene(14)[:, ::-1], quality=60)
    (root / "test" / "crow" / "4.png").unlink()
    (root / "test" / "crow" / "99.jpg").write_bytes(b"no image")
    return root


EXPECTED = {
    ("exact", "train/crow/10.png", "test/crow/0.png", False),
    ("near", "train/jay/11.png", "test/jay/1.jpg", False),
    ("mirrored", "train/crow/12.png", "test/crow/2.png", False),
    ("near", "train/crow/8.png", "test/jay/3.png", True),
    ("mirrored", "train/crow/14.png", "test/crow/4.jpg", False),
}


def test_planted_copies_are_found_and_nothing_else(planted):
    found = compare_splits(*all_splits(Data(path=str(planted))).values())
    pairs = {(p.kind, p.train_file, p.test_file, p.conflict) for p in found.pairs}
    assert pairs == EXPECTED
    assert (found.num_train, found.num_test, found.exact, found.near) == (40, 30, 1, 5)
    assert (found.conflicts, found.left_off, found.similar) == (1, 0, None)
    assert found.summary() == (
        "Near-duplicates between pretraining and test images: 5 of 30 "
        "(phash of 256 bits <= 40, mirrored too); exact: 1"
    )
    assert found.entry()["near"] == 5
    assert "pairs" not in found.entry()
    assert len(found.unreadable) == 1
    assert "test/crow/99.jpg: not an image" in found.unreadable[0]


def test_the_hash_is_imagehashs_own():
    picture = scene(3)
    found = hash_view({"image": picture, "index": 0}, np.random.default_rng(0))
    expected = imagehash.phash(Image.fromarray(picture), 16).hash
    np.testing.assert_array_equal(np.unpackbits(found["plain"]), expected.ravel())


def test_blocks_find_what_loops_over_all_pairs_find(planted, monkeypatch):
    train, test = all_splits(Data(path=str(planted))).values()
    one, other = hashes_of(train), hashes_of(test)

    def bits(a, b):
        return int(np.unpackbits((a ^ b).view(np.uint8)).sum())

    expected = {}
    for i in range(len(one.plain)):
        for j in range(len(other.plain)):
            distances = [bits(one.plain[i], side[j]) for side in (other.plain, other.mirrored)]
            if min(distances) <= 100:
                expected[i, j] = min(distances)
    found = {}
    for rows, columns, distance in module._near(one, other, 100, block=7):
        found |= dict(zip(zip(rows.tolist(), columns.tolist(), strict=True), distance, strict=True))
    assert len(found) > 10
    assert found == expected


def test_features_find_what_hashes_do_not(planted):
    train, test = all_splits(Data(path=str(planted))).values()
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(len(train), 16)).astype(np.float32)
    others = generator.normal(size=(len(test), 16)).astype(np.float32)
    others[20] = 3 * rows[5]
    found = compare_splits(train, test, features=(rows, others))
    (pair,) = [pair for pair in found.pairs if pair.kind == "similar"]
    assert (pair.train, pair.test, found.similar) == (5, 20, 1)
    assert pair.cosine == pytest.approx(1)
    assert found.near == 5
    assert found.summary().endswith("; features of cosine >= 0.95: 1")


def test_more_pairs_than_are_kept_still_count(planted, monkeypatch):
    monkeypatch.setattr(module, "MOST", 3)
    found = compare_splits(*all_splits(Data(path=str(planted))).values())
    assert [pair.distance for pair in found.pairs] == sorted(p.distance for p in found.pairs)
    assert (len(found.pairs), found.left_off, found.near) == (3, 2, 5)


# --------------------------------------------------------------------------- the command


def test_the_command_prints_lists_and_shows_the_pairs(planted, tmp_path, capsys):
    out, sheet = tmp_path / "pairs.csv", tmp_path / "pairs.png"
    words = ["compare-splits", "--data", str(planted)]
    main([*words, "--out", str(out), "--sheet", str(sheet)])
    printed = capsys.readouterr().out
    assert "test/jay/3.png  LABEL CONFLICT" in printed
    assert "5 of 30" in printed
    assert "label conflicts: 1 pairs" in printed
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert {
        (r["kind"], r["train_file"], r["test_file"], r["conflict"] == "True") for r in rows
    } == EXPECTED
    assert cv2.imread(str(sheet)).shape == (4 + 5 * (16 + 192 + 4), 4 + 2 * (192 + 4), 3)
    main([*words, "--model", "test_resnet@scratch", "--image-size", "48", "--cosine", "1",
          "--cache", str(tmp_path)])  # fmt: skip
    assert "cosine 1.000" in capsys.readouterr().out


def test_another_set_is_compared_whole_where_it_has_no_test_pictures(planted, capsys):
    main(["compare-splits", "--data", str(planted), "--against", str(planted / "train")])
    assert "40 training images of" in (printed := capsys.readouterr().out)
    assert "40 of 40" in printed
    assert "exact: 40" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "nowhere/"], "there is no folder"),
        (["--data", "loose"], "loose has no test images; name others with --against"),
        (["--data", "planted", "--out", "pairs.txt"], "the suffix is .csv"),
        (["--data", "planted", "--sheet", "pairs.jpg"], "the suffix of a sheet is .png"),
        (["--data", "planted", "--against", "broken"], "none of the 1 images of broken can be"),
    ],
)
def test_what_is_typed_wrong_is_one_line(planted, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "planted").symlink_to(planted)
    write(tmp_path / "loose" / "a.png", scene(1))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"no image")
    with pytest.raises(SystemExit) as stopped:
        main(["compare-splits", *words])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.slow
def test_a_run_that_was_trained_on_these_pictures_gets_it_into_its_card(planted, tmp_path, capsys):
    run = tmp_path / "run"
    words = ["backbone=test_resnet", f"data.path={planted}", "data.name=garden", f"output={run}"]
    steps = ["stages.0.train.steps=1", "stages.0.train.batch_size=2", "data.num_workers=0"]
    pretrain(recipe_of([*words, *steps]))
    card = run / "export" / "README.md"
    assert "not checked" in card.read_text()
    capsys.readouterr()
    compare = ["compare-splits", "--data", str(planted), "name=garden", "--card"]
    main([*compare, str(run)])
    printed = capsys.readouterr().out
    (summary,) = [line for line in printed.splitlines() if line.startswith("Near-duplicates")]
    assert summary in html.unescape(card.read_text())
    assert "not checked" not in card.read_text()
    results = json.loads((run / "export" / "results.json").read_text())
    assert results["overlap"]["summary"] == summary
    assert results["rows"][1]["name"] == "trained"
    with pytest.raises(SystemExit):
        main(["compare-splits", "--data", "drawn", "num_images=20", "--card", str(run)])
    assert "it was trained on other images than drawn holds here" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*compare, str(tmp_path / "nowhere")])
    assert "there is no exported backbone in" in capsys.readouterr().err

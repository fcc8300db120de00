import csv

import pytest
import torch
import torch.nn.functional as F

from fg_ssl_zoo import cli
from fg_ssl_zoo.evaluation.suspects import check_on_swapped, find_suspects, swapped
from tests.pictures import write_photos


def slow_reference(features, labels, k, temperature):
    """The votes of the docstring with loops, in float64."""
    x = F.normalize(features.double(), dim=1)
    found = {}
    for i in range(len(x)):
        order = sorted((j for j in range(len(x)) if j != i), key=lambda j: -float(x[i] @ x[j]))[:k]
        votes = [0.0] * (int(labels.max()) + 1)
        for j in order:
            votes[int(labels[j])] += float((x[i] @ x[j] / temperature).exp())
        shares = [vote / sum(votes) for vote in votes]
        own = shares[int(labels[i])]
        others = {c: s for c, s in enumerate(shares) if c != int(labels[i])}
        best = max(others, key=others.__getitem__)
        if others[best] > own:
            found[i] = (best, others[best] - own)
    return found


@pytest.mark.parametrize("k", [1, 5, 100])
def test_suspects_equal_the_votes_with_loops(k):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 6, generator=generator)
    labels = torch.randint(0, 4, (40,), generator=generator)
    wanted = slow_reference(features, labels, k, 0.07)
    found = find_suspects(features, labels, k=k, chunk=7)
    assert {s.row for s in found} == wanted.keys()
    for suspect in found:
        best, lead = wanted[suspect.row]
        assert suspect.suspicion == pytest.approx(lead, abs=1e-5)
        assert (suspect.suggested, suspect.label) == (best, int(labels[suspect.row]))
        assert suspect.row not in suspect.neighbours
    assert [s.suspicion for s in found] == sorted((s.suspicion for s in found), reverse=True)


def clusters(per_class=20, num_classes=5):
    generator = torch.Generator().manual_seed(1)
    centres = 4 * torch.randn(num_classes, 16, generator=generator)
    labels = torch.arange(num_classes).repeat_interleave(per_class)
    noise = torch.randn(len(labels), 16, generator=generator)
    return centres[labels] + noise, labels


def test_swapped_labels_of_well_separated_classes_are_the_list():
    features, labels = clusters()
    assert find_suspects(features, labels) == []
    wrong = swapped(labels, 0.05, seed=3)
    hidden = (wrong != labels).nonzero()[:, 0].tolist()
    assert len(hidden) == 5
    found = find_suspects(features, wrong)
    assert sorted(s.row for s in found) == hidden
    assert all(s.suggested == int(labels[s.row]) for s in found)
    assert torch.equal(wrong, swapped(labels, 0.05, seed=3))
    check = check_on_swapped(features, labels, share=0.05, seed=3)
    assert (check.swapped, check.listed, check.first) == (5, 5, 5)
    assert (check.precision, check.recall, check.recall_first) == (1, 1, 1)


def test_one_picture_has_no_neighbours():
    with pytest.raises(ValueError, match="has one image; at least 2"):
        find_suspects(torch.ones(1, 3), torch.zeros(1, dtype=torch.int64))


def test_the_command_writes_a_page_and_a_list_or_checks_itself(
    tmp_path, monkeypatch, birds, capsys
):
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos", birds, classes=True)
    words = ["suspects", "test_resnet@scratch", "--data", "photos", "--cache", "cache"]
    cli.main([*words, "--show", "2"])
    printed = capsys.readouterr().out
    with (tmp_path / "suspects.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows[0].keys() == {"rank", "file", "folder", "suggested", "suspicion"}
    assert all(row["file"].startswith(row["folder"]) for row in rows)
    page = (tmp_path / "suspects.html").read_text(encoding="utf-8")
    assert page.count("<section>") == min(2, len(rows))
    assert rows[0]["file"] in page.replace("<wbr>", "")  # a place for a line break is no text
    assert f"of {len(rows)} images" in printed
    (tmp_path / "suspects.csv").unlink()
    cli.main([*words, "--check", "0.1"])
    assert "2 of 16 labels swapped" in capsys.readouterr().out
    assert not (tmp_path / "suspects.csv").exists()


def test_pictures_of_zero_bytes_are_named_and_no_picture_is_an_error(
    tmp_path, monkeypatch, birds, capsys
):
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos", birds, classes=True)
    files = sorted((tmp_path / "photos").rglob("*.png"))
    files[0].write_bytes(b"")
    words = ["suspects", "test_resnet@scratch", "--data", "photos", "--image-size", "32"]
    cli.main([*words, "--cache", "cache"])
    assert "1 images cannot be read and are not used: " in (said := capsys.readouterr().out)
    assert f"{files[0].name}: the file is empty" in said
    for path in files:
        path.write_bytes(b"")
    with pytest.raises(SystemExit):
        cli.main([*words, "--cache", "cache"])
    assert "none of the 16 images of photos can be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--check", "1.5"], "--check: 1.5 is not between 0 and 1"),
        (["--out", "x.png"], "the suffix is .html"),
        (["--out", "photos.html"], "--out: photos.csv is a folder; a file is needed"),
        (["--show", "-3"], "argument --show: -3 is not 1 or more"),
        ([], "suspects compares labels"),
    ],
)
def test_what_is_typed_wrong_is_one_line(words, message, tmp_path, monkeypatch, birds, capsys):
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos", birds)
    (tmp_path / "photos.csv").mkdir()
    with pytest.raises(SystemExit):
        cli.main(["suspects", "test_resnet@scratch", "--data", "photos", *words])
    assert message in capsys.readouterr().err

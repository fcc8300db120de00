import errno
import pickle

import pytest
import torch

from fg_ssl_zoo.engine import checkpoint
from fg_ssl_zoo.engine.checkpoint import CheckpointError, Position

STATE = {"method": {"weight": torch.arange(4.0)}, "measurements": [{"step": 0, "eval/knn": 0.5}]}


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    path = checkpoint.save(tmp_path, Position(0, 1, 20), STATE)
    assert path.name == "stage0_round1_step00000020.pt"
    loaded = checkpoint.load(path)
    assert torch.equal(loaded["method"]["weight"], STATE["method"]["weight"])
    assert loaded["measurements"] == STATE["measurements"]


def test_the_order_is_stage_then_round_then_step(tmp_path):
    for at in [Position(0, 0, 900), Position(0, 1, 3), Position(1, 0, 1)]:
        (tmp_path / at.file_name).write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no checkpoint")
    assert list(checkpoint.positions(tmp_path)) == [
        Position(0, 0, 900),
        Position(0, 1, 3),
        Position(1, 0, 1),
    ]


def test_only_the_newest_stay(tmp_path):
    for step in range(1, 6):
        checkpoint.save(tmp_path, Position(step=step), STATE)
    assert [at.step for at in checkpoint.positions(tmp_path)] == [4, 5]


def test_a_full_disk_leaves_the_last_good_checkpoint_and_names_it(tmp_path, monkeypatch):
    good = checkpoint.save(tmp_path, Position(step=1), STATE)
    before = good.read_bytes()

    def half_a_file(state, file):
        file.write(before[: len(before) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", half_a_file)
    with pytest.raises(CheckpointError, match=r"No space left.*last good checkpoint is .*00000001"):
        checkpoint.save(tmp_path, Position(step=2), STATE)
    assert [path.name for path in tmp_path.iterdir()] == [good.name]
    assert good.read_bytes() == before


def test_a_foreign_pickle_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (print, ("boom",))

    path = tmp_path / Position(step=1).file_name
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    ("values", "broken"),
    [
        ([1.0, 2.0], False),
        ([3e38, 3e38], False),  # the sum overflows
        ([float("inf"), float("-inf")], True),
        ([float("nan"), 1.0], True),
        ([], False),
    ],
)
def test_a_value_that_is_not_finite_names_its_tensor(values, broken):
    state = {"count": torch.tensor(3), "weight": torch.tensor(values), "bias": torch.zeros(2)}
    assert checkpoint.not_finite(state) == ("weight" if broken else None)
    assert checkpoint.not_finite({"first": torch.ones(1), **state}) == (
        "weight" if broken else None
    )

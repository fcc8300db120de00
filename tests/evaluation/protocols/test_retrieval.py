import numpy as np
import pytest
import torch

from fg_ssl_zoo.evaluation.protocols import retrieval as module
from fg_ssl_zoo.evaluation.protocols.retrieval import average_precision, ranked, retrieval
from tests.evaluation.tasks import features, made_task


def by_loops(rows, labels):
    """Rank-1, Rank-5 and AP of every query, written from the definition."""
    rows = rows.double() / rows.double().norm(dim=1, keepdim=True)
    found = []
    for query in range(len(rows)):
        others = [other for other in range(len(rows)) if other != query]
        others.sort(key=lambda other: (-float(rows[query] @ rows[other]), other))
        hits = [bool(labels[other] == labels[query]) for other in others]
        precisions = [sum(hits[: rank + 1]) / (rank + 1) for rank in range(len(hits)) if hits[rank]]
        found.append([hits[0], any(hits[:5]), np.mean(precisions) if precisions else 0])
    return torch.tensor(found, dtype=torch.float64).T


def test_retrieval_equals_loops(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 7)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 6, generator=generator)
    labels = torch.randint(0, 8, (40,), generator=generator)
    torch.testing.assert_close(torch.stack(ranked(rows, labels)), by_loops(rows, labels))


def test_a_query_never_finds_itself():
    rows = torch.eye(4).repeat(2, 1)  # each image has one duplicate, of another class
    labels = torch.arange(8)
    rank1, _, precision = ranked(rows, labels)
    assert rank1.sum() == 0
    assert precision.sum() == 0


def test_ties_are_broken_by_index():
    rows = torch.ones(4, 2)
    rank1, _, _ = ranked(rows, torch.tensor([0, 1, 0, 1]))
    assert rank1.tolist() == [0, 0, 1, 0]  # the first of the others


def test_average_precision_at_a_known_point():
    hits = torch.tensor([[True, False, True, False]])
    assert average_precision(hits).item() == pytest.approx((1 + 2 / 3) / 2)


def test_a_picture_alone_in_its_class_is_no_query_and_is_named():
    labels = [0, 0, 1, 2, 2]
    part = features(torch.randn(5, 3, generator=torch.manual_seed(0)), labels)
    for outcome in retrieval(made_task(part, part, num_classes=3)):
        assert np.isnan(outcome.values).tolist() == [False, False, True, False, False]
        assert outcome.notes == ("1 images alone in their class are no queries",)

from collections import Counter

import pytest
import torch

from fg_ssl_zoo.ops.label_maps import majority


def slow_majority(labels, window):
    (height, width), half = labels.shape, window // 2
    result = labels.clone()
    for y in range(height):
        for x in range(width):
            rows = range(max(0, y - half), min(height, y + half + 1))
            columns = range(max(0, x - half), min(width, x + half + 1))
            counts = Counter(int(labels[i, j]) for i in rows for j in columns)
            most = max(counts.values())
            winners = sorted(label for label, count in counts.items() if count == most)
            own = int(labels[y, x])
            result[y, x] = own if own in winners else winners[0]
    return result


@pytest.mark.parametrize("window", [1, 3, 5])
def test_majority_equals_counting(window):
    labels = torch.randint(0, 4, (3, 9, 8), generator=torch.Generator().manual_seed(0))
    found = majority(labels, window)
    for row, expected in zip(found, labels, strict=True):
        assert torch.equal(row, slow_majority(expected, window))


def test_a_speck_vanishes_and_a_border_stays():
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    labels[:, :, 4:] = 2
    clean = labels.clone()
    labels[0, 2, 1] = 1
    assert torch.equal(majority(labels, 3), clean)


def test_an_even_window_is_refused():
    with pytest.raises(ValueError, match="smooth: 4 is not an odd number"):
        majority(torch.zeros(1, 3, 3, dtype=torch.int64), 4)

import math

import pytest

from fg_ssl_zoo.ops.schedules import cosine, ramp, warmup_cosine


def test_cosine_passes_through_its_three_known_points():
    assert cosine(2.0, 1.0, 0.0) == 2.0
    assert cosine(2.0, 1.0, 0.5) == pytest.approx(1.5)
    assert cosine(2.0, 1.0, 1.0) == 1.0


@pytest.mark.parametrize("step", range(21))
def test_warmup_cosine_equals_the_two_pieces(step):
    progress, warmup, end = step / 20, 0.25, 0.1
    rise = progress / warmup
    fall = end + (1 - end) * 0.5 * (1 + math.cos(math.pi * (step - 5) / 15))
    expected = rise if step < 5 else fall
    assert warmup_cosine(progress, warmup, end) == pytest.approx(expected)


def test_warmup_of_nothing_and_of_everything():
    assert warmup_cosine(0.0, 0.0) == 1.0
    assert warmup_cosine(0.5, 1.0) == 0.5
    assert warmup_cosine(1.0, 1.0) == 1.0


def test_a_ramp_waits_rises_and_stays():
    for progress, value in ((0, 0), (0.2, 0), (0.25, 0.25), (0.3, 0.5), (0.4, 1), (1, 1)):
        assert ramp(progress, 0.2, 0.4) == pytest.approx(value)
    assert [ramp(x, 0.5, 0.5) for x in (0.0, 0.49, 0.5, 1.0)] == [0, 0, 1, 1]
    assert ramp(0.0, 0.0, 0.0) == 1

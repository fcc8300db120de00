"""Maps of part numbers."""

import torch.nn.functional as F
from jaxtyping import Integer
from torch import Tensor


def majority(labels: Integer[Tensor, "b h w"], window: int) -> Integer[Tensor, "b h w"]:
    """The most frequent label in the window around each pixel (majority filter).

    In a tie, a pixel keeps its own label if it is among the most frequent ones; otherwise the
    lowest wins. Pixels outside of the map do not count.

    Args:
        labels: Labels of at least 0.
        window: Odd side in pixels; 1 changes nothing.

    Raises:
        ValueError: The window is even.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"smooth: {window} is not an odd number of pixels; use 1, 3, 5, ...")
    own = F.one_hot(labels.long()).movedim(-1, 1).float()  # (b, k, h, w)
    counts = F.avg_pool2d(own, window, stride=1, padding=window // 2) * window**2
    return (counts.round() + own / 2).argmax(dim=1).to(labels.dtype)

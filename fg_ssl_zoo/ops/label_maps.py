"""Maps of part numbers."""

import torch.nn.functional as F
from jaxtyping import Integer
from torch import Tensor


def majority(labels: Integer[Tensor, "b h w"], window: int) -> Integer[Tensor, "b h w"]:
    """The commonest label of the window around each pixel; removes specks, without a CRF.

    Ties keep a pixel's own label where it is among the winners, else go to the lowest. Beyond the
    border there is no label.

    Args:
        labels: At least 0.
        window: Side in pixels, odd; 1 changes nothing.

    Raises:
        ValueError: An even window.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"smooth: {window} is no odd number of pixels; 1, 3, 5, ... would do")
    own = F.one_hot(labels.long()).movedim(-1, 1).float()  # (b, k, h, w)
    counts = F.avg_pool2d(own, window, stride=1, padding=window // 2) * window**2
    return (counts.round() + own / 2).argmax(dim=1).to(labels.dtype)

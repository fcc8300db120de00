"""Label-free measures of features that show a collapse: RankMe and standard deviation."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def rankme(features: Float[Tensor, "n d"], eps: float = 1e-7) -> float:
    """Effective rank, exp of the entropy of the normalised singular values (RankMe, eq. 1).

    Garrido et al., 2023 (arXiv 2210.02885). From 1 (collapsed) to min(n, d).

    Args:
        features: Features of n images; use n well above d for a stable value.
        eps: Added to every normalised singular value, as in the paper.
    """
    values = torch.linalg.svdvals(features.double())
    share = values / values.sum().clamp_min(1e-300) + eps
    return float(torch.exp(-(share * share.log()).sum()))


def feature_std(features: Float[Tensor, "n d"]) -> float:
    """Mean standard deviation of the coordinates of unit-length features, times sqrt(d).

    1 for uniformly distributed features, 0 if all are equal (SimSiam, section 4.1, without the
    factor).
    """
    unit = F.normalize(features.double(), dim=-1)
    return float(unit.std(dim=0, correction=0).mean() * features.shape[1] ** 0.5)

"""Features as points of a plane, close features close together."""

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor

PERPLEXITY, COMPONENTS = 30, 50
FEWEST = 8
"""Pictures below which t-SNE has nothing to arrange; the two largest components are shown."""


def plane(features: Float[Tensor, "n d"], seed: int = 0) -> Float[np.ndarray, "n 2"]:
    """t-SNE of the 50 largest components of features of unit length.

    Perplexity 30 is van der Maaten and Hinton's; a third of the pictures where there are few.

    Args:
        features: Any length.
        seed: Of the optimisation.
    """
    unit = F.normalize(features, dim=-1).double().numpy()
    if len(unit) < 2 or not np.ptp(unit, axis=0).any():
        return np.zeros((len(unit), 2))
    parts = PCA(min(COMPONENTS, *unit.shape), random_state=seed).fit_transform(unit)
    if len(unit) < FEWEST:
        return parts[:, :2]
    perplexity = min(PERPLEXITY, (len(unit) - 1) / 3)
    spread = TSNE(2, perplexity=perplexity, init="pca", random_state=seed, method=_method(unit))
    return np.asarray(spread.fit_transform(parts.astype(np.float32)), dtype=np.float64)


def _method(unit: np.ndarray) -> str:
    """The exact gradient is the faster one below some hundred pictures."""
    return "exact" if len(unit) < 200 else "barnes_hut"

"""t-SNE of features to points of a plane."""

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor

PERPLEXITY, COMPONENTS = 30, 50
FEWEST = 8
"""Below this number of images, the two largest principal components are used instead of t-SNE."""


def plane(features: Float[Tensor, "n d"], seed: int = 0) -> Float[np.ndarray, "n 2"]:
    """t-SNE of the 50 largest components of features of unit length.

    Perplexity 30 as in van der Maaten and Hinton, but at most a third of the number of images.

    Args:
        features: Feature vectors of any length.
        seed: Seed of the optimisation.
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
    """`exact` or `barnes_hut`, whichever is faster: exact below some hundred images."""
    return "exact" if len(unit) < 200 else "barnes_hut"

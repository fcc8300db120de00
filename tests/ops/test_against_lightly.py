"""Our losses against those of lightly 1.6, where that is installed."""

import warnings

import pytest
import torch

from fg_ssl_zoo.ops.contrastive import info_nce, nt_xent
from fg_ssl_zoo.ops.region_contrast import region_contrast
from fg_ssl_zoo.ops.similarity import mean_cosine, unit


@pytest.fixture(scope="module")
def losses():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("lightly")
        return pytest.importorskip("lightly.loss")


def test_losses_are_lightlys(losses):
    z0, z1 = torch.randn(2, 6, 8, generator=torch.manual_seed(0))
    queue = unit(torch.randn(11, 8, generator=torch.manual_seed(1)))
    torch.testing.assert_close(nt_xent(z0, z1, 0.2), losses.NTXentLoss(0.2)(z0, z1))
    theirs = losses.NTXentLoss(0.2, memory_bank_size=(11, 8))
    theirs.memory_bank.bank.copy_(queue)
    torch.testing.assert_close(info_nce(z0, z1, queue, 0.2), theirs(z0, z1))
    torch.testing.assert_close(-mean_cosine(z0, z1), losses.NegativeCosineSimilarity()(z0, z1))


def test_the_contrast_of_regions_is_lightlys(losses):
    p, t = torch.randn(2, 2, 3, 4, 8, generator=torch.manual_seed(0))
    ids = torch.randint(0, 3, (2, 3, 4), generator=torch.manual_seed(1))
    theirs = losses.DetConBLoss(0.2, gather_distributed=False)(*p, *t, *ids)
    torch.testing.assert_close(region_contrast(p, t, ids, 0.2), theirs)

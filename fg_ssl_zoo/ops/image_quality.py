"""Similarity of two images: PSNR and SSIM of pixels in 0..1, and images for visual comparison."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

WINDOW = 11
"""Side of SSIM's window in pixels."""

SIGMA = 1.5
"""Sigma of the Gaussian window in pixels."""

K1, K2 = 0.01, 0.03
"""Constants that prevent 0 / 0 in SSIM, as shares of the range of pixels."""

LEAST_ERROR = 1e-10
"""Smallest mean squared error, so that no PSNR is above 100 dB."""


def psnr(a: Float[Tensor, "b c h w"], b: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """Peak signal-to-noise ratio, -10 log10(MSE) in dB of each image, averaged over images."""
    error = (a.float() - b.float()).square().flatten(1).mean(1)
    return -10 * error.clamp_min(LEAST_ERROR).log10().mean()


def ssim(a: Float[Tensor, "b c h w"], b: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """Structural similarity of Wang et al. (IEEE TIP 2004), averaged over positions and channels.

        (2 m_a m_b + c1) (2 s_ab + c2) / ((m_a^2 + m_b^2 + c1) (s_a^2 + s_b^2 + c2))

    with means m and (co)variances s under a Gaussian window of 11 pixels and sigma 1.5, at all
    positions where the window is inside the image; c = (0.01)^2 and (0.03)^2.

    Args:
        a: Pixels in 0..1; sides of at least 11 pixels.
        b: Pixels in 0..1.
    """
    with torch.autocast(a.device.type, enabled=False):  # variances are small differences
        a, b = (x if x.dtype == torch.float64 else x.float() for x in (a, b))
        m_a, m_b = _local_mean(a), _local_mean(b)
        s_a = _local_mean(a * a) - m_a**2
        s_b = _local_mean(b * b) - m_b**2
        s_ab = _local_mean(a * b) - m_a * m_b
        light = (2 * m_a * m_b + K1**2) / (m_a**2 + m_b**2 + K1**2)
        structure = (2 * s_ab + K2**2) / (s_a + s_b + K2**2)
        return (light * structure).mean()


def _local_mean(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c i j"]:
    """Gaussian mean of every window, computed along one axis after the other."""
    place = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    weights = torch.exp(-(place**2) / (2 * SIGMA**2))
    weights = (weights / weights.sum()).expand(x.shape[1], 1, 1, WINDOW)
    rows = F.conv2d(x, weights, groups=x.shape[1])
    return F.conv2d(rows, weights.transpose(2, 3), groups=x.shape[1])


def quality(
    restored: Float[Tensor, "b c h w"], true: Float[Tensor, "b c h w"]
) -> dict[str, Float[Tensor, ""]]:
    """`train/psnr` and `train/ssim` of images that are first clamped to 0..1; without gradient."""
    shown = restored.detach().float().clamp(0, 1)
    return {"train/psnr": psnr(shown, true), "train/ssim": ssim(shown, true)}


def strip(
    low: UInt8[Tensor, "b h w 3"],
    restored: Float[Tensor, "b 3 s s"],
    high: UInt8[Tensor, "b s s 3"],
    most: int = 8,
) -> UInt8[Tensor, "p q 3"]:
    """One row per image: the small image with repeated pixels, the restored and the true image."""
    side = high.shape[1]
    repeated = F.interpolate(low[:most].movedim(-1, 1).float(), size=(side, side)).movedim(1, -1)
    pixels = (restored[:most].float().clamp(0, 1) * 255).round().movedim(1, -1)
    rows = torch.cat([repeated.byte(), pixels.byte(), high[:most]], dim=2)  # (b, s, 3 s, 3)
    return rows.flatten(0, 1)


def side_by_side(*columns: Float[Tensor, "b 3 s s"], most: int = 8) -> UInt8[Tensor, "p q 3"]:
    """One row per image, one column per argument; pixels are clamped to 0..1."""
    rows = torch.cat([column[:most].float().clamp(0, 1) for column in columns], dim=3)
    return (rows * 255).round().byte().movedim(1, -1).flatten(0, 1)

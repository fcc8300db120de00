"""BatchNorm with the statistics of all processes, so that results equal those of one process."""

import torch
from jaxtyping import Float
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn

from fg_ssl_zoo.ops.distributed import gather, world_size


class AnyDeviceSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Like `torch.nn.SyncBatchNorm`, but also on CPUs.

    Means and variances are merged as in Chan, Golub & LeVeque, 1979 (Updating formulae and a
    pairwise algorithm for computing sample variances), since E[x^2] - E[x]^2 is inaccurate for a
    variance that is small relative to the mean. Every process must have the same number of rows.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (b, c, ...) over all axes except c, and over all processes.

        Raises:
            ValueError: There is only one value per channel in all processes together.
        """
        if not self.training or world_size() == 1:
            return super().forward(input)
        count = input.numel() // input.shape[1] * world_size()
        if count < 2:
            raise ValueError(f"BatchNorm needs more than 1 value per channel in training; {count}")
        x = input if input.dtype == torch.float64 else input.float()
        mean, variance = _merged(x)
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        scale = (variance + self.eps).rsqrt() * (1.0 if self.weight is None else self.weight)
        shape = (1, -1, *[1] * (input.ndim - 2))
        out = (x - mean.view(shape)) * scale.view(shape)
        return (out if self.bias is None else out + self.bias.view(shape)).to(input.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or not self.track_running_stats:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = self.momentum
        if share is None:  # plain average over all batches, as in torch
            share = 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of axes."""


def _merged(x: Float[Tensor, "b c *n"]) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
    """Mean and biased variance of each channel over all processes, with gradient.

    With equal counts, Chan's merge is the mean of the variances plus the variance of the means.
    """
    variance, mean = torch.var_mean(x, dim=[0, *range(2, x.ndim)], correction=0)
    means, variances = gather(torch.cat([mean, variance])[None]).chunk(2, dim=1)  # (world, c) each
    mean = means.mean(0)
    return mean, variances.mean(0) + (means - mean).square().mean(0)


def norms_of_batches(module: nn.Module) -> dict[str, nn.Module]:
    """Name -> BatchNorm layer that uses the statistics of the batch in its current mode.

    Frozen layers (in evaluation mode, with running statistics) are left out.
    """
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        and (layer.training or layer.running_mean is None)
    }


def synchronises(layer: nn.Module, device: torch.device) -> bool:
    """Whether `synchronise` gives this layer the statistics of all processes."""
    return device.type == "cuda" or type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d)


def synchronise(module: nn.Module, device: torch.device) -> nn.Module:
    """Replace BatchNorm layers by synchronised ones; the keys of the state dict do not change.

    On a CPU, only torch's own layers are replaced; timm's fused norm-and-activation layers are not.
    Layers that are synchronised already, as in a second round, stay as they are: timm would replace
    a norm-and-activation layer by a norm without the activation.
    """
    on_gpu = device.type == "cuda"
    kept = nn.SyncBatchNorm | AnyDeviceSyncBatchNorm
    for parent in list(module.modules()):
        for name, layer in parent.named_children():
            if not isinstance(layer, nn.modules.batchnorm._BatchNorm) or isinstance(layer, kept):
                continue
            if synchronises(layer, device):
                setattr(parent, name, (convert_sync_batchnorm if on_gpu else _converted)(layer))
    return module


def _converted(layer: nn.modules.batchnorm._BatchNorm) -> AnyDeviceSyncBatchNorm:
    twin = AnyDeviceSyncBatchNorm(
        layer.num_features,
        eps=layer.eps,
        momentum=layer.momentum,
        affine=layer.affine,
        track_running_stats=layer.track_running_stats,
    )
    twin.train(layer.training)
    if layer.affine:
        twin.weight, twin.bias = layer.weight, layer.bias
    for name, buffer in layer.named_buffers():
        setattr(twin, name, buffer)
    return twin

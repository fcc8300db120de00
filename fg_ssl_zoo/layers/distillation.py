"""DINO's loss between student and teacher, with its centre and temperatures."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fg_ssl_zoo.ops.distillation import distillation_loss, signs_of_collapse
from fg_ssl_zoo.ops.distributed import mean_over_processes


class Distillation(nn.Module):
    """DINO's loss with its moving centre and schedules, which are part of every checkpoint.

    The centre prevents one output from dominating for all images; the low temperature prevents
    equal outputs.

    Args:
        prototypes: Number of outputs `k` of the head.
        student_temperature: Divides the student's logits; 0.1 in the paper.
        teacher_temperature: First and last value, linear between; 0.04, 0.07 in the official
            longer run.
        teacher_warmup: Share of the stage over which the teacher's temperature rises.
        centre_momentum: Momentum of the centre; 0.9 in the paper.
        freeze_last_layer: Share of the stage in which `prototypes_fixed` is true.
    """

    centre: Tensor
    teacher_temperature: Tensor
    prototypes_fixed: Tensor

    def __init__(
        self,
        prototypes: int,
        *,
        student_temperature: float = 0.1,
        teacher_temperature: tuple[float, float] = (0.04, 0.07),
        teacher_warmup: float = 0.1,
        centre_momentum: float = 0.9,
        freeze_last_layer: float = 0.01,
    ) -> None:
        super().__init__()
        self.student_temperature, self.centre_momentum = student_temperature, centre_momentum
        self.teacher_temperatures, self.teacher_warmup = teacher_temperature, teacher_warmup
        self.freeze_last_layer = freeze_last_layer
        self.register_buffer("centre", torch.zeros(prototypes))
        self.register_buffer("teacher_temperature", torch.zeros(()))
        self.register_buffer("prototypes_fixed", torch.zeros((), dtype=torch.bool))
        self.set_progress(0.0)

    def forward(
        self, logits: Float[Tensor, "v b k"], seen: Float[Tensor, "g b k"]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Loss and `signs_of_collapse`; then updates the centre, in training only.

        Args:
            logits: The student's logits of all views.
            seen: The teacher's logits of the first g views, without gradient.
        """
        with torch.no_grad():
            targets = ((seen - self.centre) / self.teacher_temperature).softmax(dim=-1)
        loss = distillation_loss(logits, targets, self.student_temperature)
        if self.training:
            mean = mean_over_processes(seen.mean((0, 1)))  # (k,)
            self.centre.lerp_(mean, 1 - self.centre_momentum)
        return loss, signs_of_collapse(targets, loss.detach())

    def set_progress(self, progress: float) -> None:
        """Set temperature and freeze for the step at `progress`."""
        start, end = self.teacher_temperatures
        risen = min(1.0, progress / self.teacher_warmup) if self.teacher_warmup else 1.0
        self.teacher_temperature.fill_(start + (end - start) * risen)
        self.prototypes_fixed.fill_(progress < self.freeze_last_layer)

"""A student names what its teacher names (DINO): the loss, and how to see a collapse of it.

Paper: Caron, Touvron, Misra, Jegou, Mairal, Bojanowski & Joulin, 2021 (arXiv 2104.14294).
"""

import torch
from jaxtyping import Float
from torch import Tensor


def distillation_loss(
    logits: Float[Tensor, "v b k"], targets: Float[Tensor, "g b k"], temperature: float
) -> Float[Tensor, ""]:
    """Mean over all pairs of different views of -sum_k P_t log P_s (DINO, eq. 3).

    ln(k) for a student whose logits are all alike, whatever the targets.

    Args:
        logits: The student's, of all views; the first g are the views that the teacher sees.
        targets: The teacher's distributions, without gradient.
        temperature: Divides the logits.
    """
    log_p = (logits / temperature).log_softmax(dim=-1).unbind()  # an index would cost a copy each
    pairs = [(g, v) for g in range(len(targets)) for v in range(len(logits)) if v != g]
    return torch.stack([-(targets[g] * log_p[v]).sum(-1).mean() for g, v in pairs]).mean()


@torch.no_grad()
def signs_of_collapse(targets: Float[Tensor, "g b k"], loss: Tensor) -> dict[str, Tensor]:
    """Entropies in nats of what the teacher says, and what the student has left to learn.

    `teacher_entropy` is 0 where one output has won and ln k where all are alike; the batch's mean
    distribution has no more than it where all images get one answer. The divergence of student
    and teacher is 0 after either collapse (section 5.3 of the paper).

    Args:
        targets: The teacher's distributions.
        loss: Cross entropy of the teacher's outputs and the student's.
    """
    entropy = torch.special.entr(targets).sum(-1).mean()
    return {
        "train/teacher_entropy": entropy,
        "train/teacher_student_kl": loss - entropy,
        "train/teacher_batch_entropy": torch.special.entr(targets.mean((0, 1))).sum(),
    }

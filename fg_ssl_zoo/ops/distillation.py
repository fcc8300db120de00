"""DINO's loss between student and teacher, and values that show a collapse.

Paper: Caron, Touvron, Misra, Jegou, Mairal, Bojanowski & Joulin, 2021 (arXiv 2104.14294).
"""

import torch
from jaxtyping import Float
from torch import Tensor


def distillation_loss(
    logits: Float[Tensor, "v b k"], targets: Float[Tensor, "g b k"], temperature: float
) -> Float[Tensor, ""]:
    """Mean over all pairs of different views of -sum_k P_t log P_s (DINO, eq. 3).

    Its value is ln(k) if all logits of the student are equal, for any targets.

    Args:
        logits: The student's logits of all views; the teacher reads the first g of these views.
        targets: The teacher's distributions, without gradient.
        temperature: Divides the logits.
    """
    log_p = (logits / temperature).log_softmax(dim=-1).unbind()  # indexing would copy
    pairs = [(g, v) for g in range(len(targets)) for v in range(len(logits)) if v != g]
    return torch.stack([-(targets[g] * log_p[v]).sum(-1).mean() for g, v in pairs]).mean()


@torch.no_grad()
def signs_of_collapse(targets: Float[Tensor, "g b k"], loss: Tensor) -> dict[str, Tensor]:
    """Entropies of the teacher's outputs in nats, and the divergence of teacher and student.

    `teacher_entropy` is 0 if one output dominates, and ln k if all outputs are equal. The entropy
    of the batch's mean distribution equals it if all images have the same output. The divergence of
    teacher and student is 0 after either collapse (section 5.3 of the paper).

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

"""Processor time of one optimizer step, fused against one operation after the other.

    python benchmarks/optimizer.py [BACKBONE ...] [--turns 15]

Random gradients on the weights of a backbone, one thread; the two take turns, and the ratio is the
median over the turns.
"""

import argparse
import statistics
import time

import timm
import torch


def main() -> None:
    """Print one line for each backbone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backbones", nargs="*", default=["resnet18", "resnet50"])
    parser.add_argument("--turns", type=int, default=15)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for name in chosen.backbones:
        measure(name, chosen.turns)


def measure(name: str, turns: int) -> None:
    """Milliseconds of a step of AdamW, both ways."""
    steppers = {}
    for fused in (False, True):
        torch.manual_seed(0)
        parameters = list(timm.create_model(name, num_classes=0).parameters())
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        steppers[fused] = torch.optim.AdamW(parameters, lr=1e-4, fused=fused).step
    taken: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(turns + 2):
        for fused, step in steppers.items():
            began = time.process_time()
            step()
            if turn >= 2:  # the first ones make the moments
                taken[fused].append(1000 * (time.process_time() - began))
    ratio = statistics.median(a / b for a, b in zip(taken[False], taken[True], strict=True))
    before, after = (statistics.median(taken[fused]) for fused in (False, True))
    print(f"{name}: {before:.1f} ms, fused {after:.1f} ms, {ratio:.2f} times as fast")


if __name__ == "__main__":
    main()

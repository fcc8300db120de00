"""Does a GPU wait? A run beside the bare step on synthetic tensors, in under ten minutes.

    python benchmarks/gpu.py [--folder PICTURES] [--batch-size 256] [--compile]
    python benchmarks/gpu.py --device cpu --quick        that it works, without a GPU

For ResNet-50 and ViT-S at 224 px, with two views of SimCLR, images (source images) per second:

    bare          forward, backward and AdamW of the backbone on random tensors on the device
    step          the same of the method on one uint8 batch: normalisation, heads and loss besides
    run           `fit` with its loader, from JPEGs; what the difference to `step` is, is waiting
    run, loader   the same with `speed.device_views=false`: colours and blur in the loader
    run, compiled the same with `speed.compile=true`, where `--compile` asks for it

Times are wall times of a number of steps after as many that do not count. Without a folder, 512
images of 256 px are drawn.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import cv2
import torch
from torch import Tensor, nn

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.config import Data, Speed, Train
from fg_ssl_zoo.data.datasets import load_splits
from fg_ssl_zoo.data.device_views import defer
from fg_ssl_zoo.data.drawn import DrawnBirds
from fg_ssl_zoo.data.loader import ViewDataset, step_loader
from fg_ssl_zoo.data.order import Order
from fg_ssl_zoo.data.sample import Images
from fg_ssl_zoo.engine import hardware
from fg_ssl_zoo.engine.batches import on_device
from fg_ssl_zoo.engine.loop import Fit, fit
from fg_ssl_zoo.engine.measuring import Measuring
from fg_ssl_zoo.engine.optim import create_optimizer
from fg_ssl_zoo.engine.provenance import describe_hardware
from fg_ssl_zoo.engine.run_folder import RunFolder
from fg_ssl_zoo.method import Batch, Method
from fg_ssl_zoo.methods import create_method
from fg_ssl_zoo.ops.tables import markdown_table

BACKBONES = ("resnet50", "vit_small_patch16_224")
QUICK = ("test_resnet", "test_vit")
TRAIN = Train(optimizer="adamw", lr=1e-3, checkpoint_every=1e6)


class Case:
    """One backbone: what all measurements of it share.

    Args:
        name: Of a timm model.
        images: Images of the run.
        size: Side of a view in pixels.
        batch_size: Source images of a step.
        steps: That are timed.
    """

    def __init__(self, name: str, images: Images, size: int, batch_size: int, steps: int) -> None:
        self.name, self.images, self.size = name, images, size
        self.batch_size, self.steps = batch_size, steps
        with torch.device("meta"):
            shape = create_backbone(name, image_size=size).model
        convolutional = hardware.is_convolutional(shape)
        self.switches = hardware.choose(Speed(), convolutional=convolutional)
        hardware.switch_on(self.switches)

    def method(self) -> Method:
        """SimCLR, as a run builds it."""
        torch.manual_seed(0)
        method = create_method("simclr", create_backbone(self.name, image_size=self.size))
        method = method.to(self.switches.device).train()
        if self.switches.channels_last:
            nn.Module.to(method, memory_format=torch.channels_last)
        return method

    def bare(self) -> float:
        """Images per second of the backbone alone."""
        backbone = self.method().backbone
        shape = (2 * self.batch_size, 3, self.size, self.size)
        pictures = torch.randn(shape, device=self.switches.device)
        if self.switches.channels_last:
            pictures = pictures.to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(backbone.parameters(), lr=1e-3, fused=True)
        return self._per_second(lambda: self._update(optimizer, lambda: backbone(pictures).mean()))

    def step(self) -> float:
        """Images per second of the method on one batch."""
        method, batch = self.method(), self._batch()
        optimizer = create_optimizer(method, replace(TRAIN, batch_size=self.batch_size))
        return self._per_second(lambda: self._update(optimizer, lambda: method(batch).loss))

    def run(self, *, device_views: bool, compiled: bool = False) -> float:
        """Images per second of `fit` in the second half of its steps.

        Start, compilation, measurements and checkpoints lie before or after these steps.
        """
        switches = replace(self.switches, device_views=device_views, compile=compiled)
        method = self.method()
        views = method.views(self.size)
        chosen = replace(TRAIN, batch_size=self.batch_size, steps=2 * self.steps)
        times: list[float] = []

        def note(progress: float) -> None:
            if round(progress * 2 * self.steps) in (self.steps, 2 * self.steps):
                self._wait()
                times.append(time.perf_counter())

        method.on_step_end = note
        with tempfile.TemporaryDirectory() as folder:
            job = Fit(
                chosen,
                ViewDataset(self.images, (defer(views) or views) if device_views else views, 0),
                hardware.create_accelerator(switches),
                RunFolder(Path(folder)),
                measuring=Measuring(every=1e6),
                channels_last=switches.channels_last,
                compile=compiled,
            )
            fit(method, job)
            job.accelerator.free_memory()
        return self.batch_size * self.steps / (times[1] - times[0])

    def _batch(self) -> Batch:
        dataset = ViewDataset(self.images, self.method().views(self.size), 0)
        order = Order(len(self.images), self.batch_size, 0)
        loader = step_loader(dataset, order, range(1), num_workers=0)
        return next(on_device(loader, torch.device(self.switches.device), lambda names: None))

    def _update(self, optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor]) -> None:
        bf16 = self.switches.precision == "bf16"
        with torch.autocast(self.switches.device, torch.bfloat16, enabled=bf16):
            loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def _per_second(self, work: Callable[[], None]) -> float:
        for _ in range(self.steps):
            work()
        self._wait()
        began = time.perf_counter()
        for _ in range(self.steps):
            work()
        self._wait()
        return self.batch_size * self.steps / (time.perf_counter() - began)

    def _wait(self) -> None:
        if self.switches.device == "cuda":
            torch.cuda.synchronize()


def measured(case: Case, compiled: bool) -> list[str]:
    """The row of a backbone; a run also as a share of `step`."""
    bare, step = case.bare(), case.step()
    runs = [case.run(device_views=True), case.run(device_views=False)]
    runs += [case.run(device_views=True, compiled=True)] if compiled else []
    shown = [f"{value:,.0f} ({value / step:.0%})" for value in runs]
    return [case.name, f"{bare:,.0f}", f"{step:,.0f}", *shown]


def drawn_pictures(folder: Path, count: int, size: int) -> None:
    """JPEGs of drawn birds."""
    birds = DrawnBirds(count, num_classes=8, image_size=size, seed=0)
    for number in range(count):
        picture = cv2.cvtColor(birds[number]["image"], cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(folder / f"{number:04d}.jpg"), picture)


def main(words: Sequence[str] | None = None) -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="of images; drawn ones when not given")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=30, help="steps that are timed")
    parser.add_argument("--compile", action="store_true", help="also with speed.compile=true")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny networks, 48 px, four steps")
    chosen = parser.parse_args(words)
    if chosen.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    elif not torch.cuda.is_available():
        parser.error("no GPU is available; --device cpu --quick shows that the script works")
    quick = chosen.quick
    names, size, steps = (QUICK, 48, 2) if quick else (BACKBONES, 224, chosen.steps)
    batch_size = 8 if quick else chosen.batch_size
    with tempfile.TemporaryDirectory() as drawn:
        if chosen.folder is None:
            drawn_pictures(Path(drawn), 16 if quick else 2 * batch_size, size + 32)
        data = Data(path=str(chosen.folder or drawn), image_size=size)
        images, _ = load_splits(data, seed=0)
        cases = (Case(name, images, size, batch_size, steps) for name in names)
        try:
            rows = [measured(case, chosen.compile) for case in cases]
        except torch.OutOfMemoryError:
            parser.error(
                f"a batch of {batch_size} images does not fit the memory of this GPU; use "
                f"--batch-size {max(1, batch_size // 2)}"
            )
    about = describe_hardware() if chosen.device == "cpu" else torch.cuda.get_device_name()
    print(f"\n{about}; {size} px, batch {batch_size}, images per second (share of step):\n")
    titles = ["backbone", "bare", "step", "run", "run, loader"]
    print(markdown_table([*titles, *(["run, compiled"] if chosen.compile else [])], rows))


if __name__ == "__main__":
    main()

"""What a step of each method costs beside the bare network on the same images.

    python benchmarks/step.py [METHOD ...] [--backbone resnet18] [--image-size 96] [--batch-size 32]
                              [--rounds 9] [--options simclr.hidden_size=512 ...] [--out FILE.json]

A method's step is forward, backward and what it does when the step has ended (a teacher follows);
the optimizer is left out on both sides. It stands beside two bare steps of the backbone alone, in
the same precision and memory format:

    views    forward and backward of every image of the batch, once
    passes   forward and backward of what went through a backbone with a gradient, and forward only
             of what went through one without: the sum of the method's own passes, teacher included

A speed of 0.95 means that the method handles 95 images while the bare step handles 100; a memory
of 1.1 means a tenth more. Time is processor time on a CPU, wall time on a GPU; the three steps take
turns, and a ratio is the median over all turns, so that a noisy machine moves it little. Memory is
the peak over what the process held before it built anything, each in a fresh process (on a GPU: the
peak that torch allocated).
"""

import argparse
import copy
import gc
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.backbones.maps import accept_size
from fg_ssl_zoo.config import Speed, parse_words
from fg_ssl_zoo.data.drawn import DrawnBirds
from fg_ssl_zoo.data.loader import ViewDataset, step_loader
from fg_ssl_zoo.data.order import Order
from fg_ssl_zoo.engine import hardware
from fg_ssl_zoo.engine.provenance import commit, describe_hardware, versions
from fg_ssl_zoo.method import Method
from fg_ssl_zoo.methods import METHODS, complete_options, create_method

STATUS = Path("/proc/self/status")

Pictures = list[tuple[int, int, int]]
"""How many images of which height and width, in pixels."""


@dataclass(frozen=True)
class Setting:
    """What all steps share.

    Attributes:
        backbone: A timm name.
        image_size: In pixels.
        batch_size: Source images a step.
        precision: `auto`, `bf16` or `fp32`.
        options: Of each method.
    """

    backbone: str = "resnet18"
    image_size: int = 96
    batch_size: int = 32
    precision: Any = "auto"
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def switches(self) -> hardware.Switches:
        """As a training has them, switched on."""
        with torch.device("meta"):
            model = create_backbone(self.backbone, image_size=self.image_size).model
        speed = Speed(precision=self.precision)
        switches = hardware.choose(speed, convolutional=hardware.is_convolutional(model))
        hardware.switch_on(switches)
        return switches


def main(words: Sequence[str] | None = None) -> None:
    """Print a table of all methods, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--backbone", default=Setting.backbone)
    parser.add_argument("--image-size", type=int, default=Setting.image_size)
    parser.add_argument("--batch-size", type=int, default=Setting.batch_size)
    parser.add_argument("--precision", default="auto", choices=["auto", "bf16", "fp32"])
    parser.add_argument("--rounds", type=int, default=9, help="turns of the three steps")
    parser.add_argument("--options", nargs="+", default=[], metavar="METHOD.KEY=VALUE")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a .json file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    chosen = parser.parse_args(words)
    torch.set_num_threads(chosen.threads)
    if chosen.worker:
        print(json.dumps(peak_of(**json.loads(chosen.worker))))
        return
    unknown = sorted(set(chosen.methods) - set(METHODS))
    if unknown:
        parser.error(f"unknown methods {', '.join(unknown)}; there are {', '.join(METHODS)}")
    setting = Setting(
        chosen.backbone, chosen.image_size, chosen.batch_size, chosen.precision,
        parsed(chosen.options),
    )  # fmt: skip
    switches = setting.switches()
    print(f"{setting.backbone}, {setting.image_size} px, batch {setting.batch_size}")
    print(f"{describe_hardware()}; {switches}\n")
    rows = []
    for name in chosen.methods or METHODS:
        rows.append(measured(name, setting, switches, chosen.rounds, chosen.threads))
        print(f"{name}: {rows[-1].get('refused', 'done')}", file=sys.stderr, flush=True)
    print(table(rows, switches.device))
    if chosen.out:
        about = {
            **asdict(setting),
            "rounds": chosen.rounds,
            "hardware": f"{describe_hardware()}; {switches}",
            "versions": versions(),
            "commit": commit(),
        }
        text = json.dumps({**about, "rows": rows}, indent=2) + "\n"
        chosen.out.write_text(text, encoding="utf-8")


def parsed(words: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`simclr.hidden_size=512` -> {"simclr": {"hidden_size": 512}}."""
    found: dict[str, dict[str, Any]] = {}
    for word in words:
        path, _, value = word.partition("=")
        method, _, key = path.partition(".")
        found.setdefault(method, {}).update(parse_words(dict[str, Any], [f"{key}={value}"], method))
    return found


# --------------------------------------------------------------------------- one method


def measured(
    name: str, setting: Setting, switches: hardware.Switches, rounds: int, threads: int
) -> dict[str, Any]:
    """Everything about one method, or why it cannot be had in this setting."""
    try:
        row = timed(name, setting, switches, rounds)
    except ValueError as error:
        return {"method": name, "refused": str(error)}
    own = peak_in_fresh_process(setting, threads, method=name)
    bare = bare_of(row["views"], row["with_gradient"], row["forward_only"])
    peaks = {
        kind: peak_in_fresh_process(
            setting, threads, with_gradient=with_gradient, forward_only=forward_only
        )
        for kind, (with_gradient, forward_only) in bare.items()
        if kind in row["speed"]
    }
    if "passes" not in bare and "views" in peaks:  # the same step
        peaks["passes"], row["speed"]["passes"] = peaks["views"], row["speed"]["views"]
    row["megabytes"] = {"method": own, **peaks}
    row["memory"] = {kind: own / peak for kind, peak in peaks.items()}
    return row


def timed(name: str, setting: Setting, switches: hardware.Switches, rounds: int) -> dict[str, Any]:
    """Seconds of a method's step and of the bare ones, taken in turns."""
    method, batch = prepared(name, setting, switches)
    views, with_gradient, forward_only = views_of(batch), *passes_of(method, batch, switches)
    backbone = copy.deepcopy(method.backbone).requires_grad_(True)
    works = {"method": lambda: step(method, batch, switches)}
    for kind, passes in bare_of(views, with_gradient, forward_only).items():
        work = bare_step(backbone, *passes, switches)
        if readable(work):
            works[kind] = work
    taken: dict[str, list[float]] = {kind: [] for kind in works}
    for turn in range(rounds + 2):  # the first two do not count
        first = turn % len(works)
        for kind in [*works, *works][first : first + len(works)]:
            seconds = clocked(works[kind], switches.device)
            taken[kind] += [seconds] if turn > 1 else []
    speed = {
        kind: statistics.median(bare / own for bare, own in pairs)
        for kind in works.keys() - {"method"}
        for pairs in [list(zip(taken[kind], taken["method"], strict=True))]
    }
    return {
        "method": name,
        "views": views,
        "with_gradient": with_gradient,
        "forward_only": forward_only,
        "images_per_second": setting.batch_size / statistics.median(taken["method"]),
        "seconds": taken,
        "speed": speed,
    }


def bare_of(
    views: Pictures, with_gradient: Pictures, forward_only: Pictures
) -> dict[str, tuple[Pictures, Pictures]]:
    """The bare steps to measure; `passes` only where they are others than the views."""
    alike = with_gradient == views and not forward_only
    return {"views": (views, [])} | ({} if alike else {"passes": (with_gradient, forward_only)})


def prepared(
    name: str, setting: Setting, switches: hardware.Switches
) -> tuple[Method, dict[str, Any]]:
    """A method as training has it, and a batch of its views of drawn birds on its device."""
    torch.manual_seed(0)
    images = DrawnBirds(setting.batch_size, num_classes=2, image_size=setting.image_size, seed=0)
    options = complete_options(
        name, setting.options.get(name, {}), images, batch_size=setting.batch_size
    )
    backbone = create_backbone(setting.backbone, image_size=setting.image_size)
    method = create_method(name, backbone, **options).to(switches.device).train()
    if switches.channels_last:
        nn.Module.to(method, memory_format=torch.channels_last)
    notes = method.annotate(images, hardware.create_accelerator(switches))
    dataset = ViewDataset(images, method.views(setting.image_size), 0, notes)
    order = Order(len(images), setting.batch_size, 0)
    batch = next(iter(step_loader(dataset, order, range(1), num_workers=0)))
    return method, send_to_device(batch, switches.device)


def step(method: Method, batch: dict[str, Any], switches: hardware.Switches) -> None:
    """Forward, backward, and the end of the step."""
    with autocast(switches):
        loss = method(batch).loss
    loss.backward()
    method.zero_grad(set_to_none=True)
    method.on_step_end(0.5)


def bare_step(
    backbone: Backbone, with_gradient: Pictures, forward_only: Pictures, switches: hardware.Switches
) -> Callable[[], None]:
    """The same for a backbone alone; images of one size are one batch.

    Args:
        backbone: Of the student; a copy of it stands in for the teacher.
        with_gradient: Images that go forward and backward.
        forward_only: Images that a teacher sees.
        switches: Precision and device.
    """
    teacher = copy.deepcopy(backbone).requires_grad_(False) if forward_only else None
    drawn = [drawn_like(pictures, switches.device) for pictures in (with_gradient, forward_only)]

    def work() -> None:
        with autocast(switches):
            if teacher is not None:
                with torch.no_grad():
                    for pixels in drawn[1]:
                        teacher(teacher.normalize(pixels))
            features = [backbone(backbone.normalize(pixels)) for pixels in drawn[0]]
        sum((f.float().sum() for f in features), start=torch.zeros(())).backward()
        backbone.zero_grad(set_to_none=True)

    return work


def drawn_like(pictures: Pictures, device: str) -> list[Tensor]:
    """Random pixels of the same numbers and sizes."""
    return [
        torch.randint(0, 256, (n, h, w, 3), dtype=torch.uint8, device=device)
        for n, h, w in pictures
    ]


def autocast(switches: hardware.Switches) -> Any:
    """The precision of a training."""
    enabled = switches.precision == "bf16"
    return torch.autocast(switches.device, torch.bfloat16, enabled=enabled)


def readable(work: Callable[[], None]) -> bool:
    """Whether the backbone reads images of these sizes at all: a ViT wants whole patches."""
    try:
        work()
    except (RuntimeError, AssertionError, ValueError):
        return False
    return True


def clocked(work: Callable[[], None], device: str) -> float:
    """Seconds of one call: of the processor on a CPU, else by the clock."""
    if device != "cuda":
        began = time.process_time()
        work()
        return time.process_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - began


# --------------------------------------------------------------------------- what is counted


def views_of(batch: Mapping[str, Any]) -> Pictures:
    """All images of a batch: uint8 tensors (b, ..., h, w, 3)."""
    found: Counter[tuple[int, int]] = Counter()
    for value in batch.values():
        if (
            isinstance(value, Tensor)
            and value.dtype == torch.uint8
            and value.shape[3:][-1:] == (3,)
        ):
            found[value.shape[-3], value.shape[-2]] += math.prod(value.shape[:-3])
    return _listed(found)


def passes_of(
    method: Method, batch: dict[str, Any], switches: hardware.Switches
) -> tuple[Pictures, Pictures]:
    """What goes through the method's backbones in one step, with a gradient and without.

    Seen at the first convolution, which pooled features and feature maps have in common.
    """
    seen: dict[bool, Counter[tuple[int, int]]] = {True: Counter(), False: Counter()}

    def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        count, _, height, width = inputs[0].shape
        seen[torch.is_grad_enabled()][height, width] += count

    backbones = [module for module in method.modules() if isinstance(module, Backbone)]
    stems = [next(m for m in b.modules() if isinstance(m, nn.Conv2d)) for b in backbones]
    hooks = [stem.register_forward_pre_hook(note) for stem in stems]
    step(method, batch, switches)
    for hook in hooks:
        hook.remove()
    return _listed(seen[True]), _listed(seen[False])


def _listed(found: Counter[tuple[int, int]]) -> Pictures:
    return [(count, *size) for size, count in sorted(found.items(), reverse=True)]


# --------------------------------------------------------------------------- memory


def peak_in_fresh_process(setting: Setting, threads: int, **what: Any) -> float:
    """`peak_of`, where nothing else has been allocated before."""
    task = json.dumps({"setting": asdict(setting), **what})
    command = [sys.executable, __file__, "--threads", str(threads), "--worker", task]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the process that measures memory failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_of(
    setting: dict[str, Any],
    method: str | None = None,
    with_gradient: Sequence[Sequence[int]] = (),
    forward_only: Sequence[Sequence[int]] = (),
) -> float:
    """Peak of two steps of a method, or of two bare ones, in MB above what was there before."""
    chosen = Setting(**setting)
    switches = chosen.switches()
    prepared("simclr", Setting("test_resnet", 32, 2), switches)  # what all processes load
    bare_step(create_backbone("test_resnet"), [(2, 32, 32)], [], switches)()
    gc.collect()
    if switches.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = memory("VmRSS")
    if method:
        built, batch = prepared(method, chosen, switches)

        def work() -> None:
            step(built, batch, switches)
    else:
        torch.manual_seed(0)
        backbone = create_backbone(chosen.backbone, image_size=chosen.image_size)
        for side in {p[1] for p in (*with_gradient, *forward_only)} - {chosen.image_size}:
            accept_size(backbone, side)
        backbone.to(switches.device).train()
        if switches.channels_last:
            nn.Module.to(backbone, memory_format=torch.channels_last)
        pictures = [[(n, h, w) for n, h, w in these] for these in (with_gradient, forward_only)]
        work = bare_step(backbone, *pictures, switches)
    for _ in range(2):
        work()
    if switches.device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return memory("VmHWM") - before


def memory(line: str) -> float:
    """MB in main memory, now (`VmRSS`) or at most (`VmHWM`) since the process began.

    Linux's own record is read, as `getrusage` hands a parent's peak on to its children; elsewhere
    there is nothing else, and both are the peak.
    """
    if STATUS.is_file():
        found = dict(row.split(":", 1) for row in STATUS.read_text().splitlines())
        return int(found[line].split()[0]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


# --------------------------------------------------------------------------- the table


def table(rows: Sequence[Mapping[str, Any]], device: str) -> str:
    """Markdown; a dash where the backbone cannot read the images of a batch."""
    per = "images/s" if device == "cuda" else "images per core-second"
    titles = ["method", "images", "passes with gradient", "forward only", per]
    titles += ["speed / views", "speed / passes", "MB", "memory / views", "memory / passes"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * 4 + "|---:" * 6 + "|"]
    for row in rows:
        if "refused" in row:
            lines.append(f"| {row['method']} | refused: {row['refused']} |" + " |" * 8)
            continue
        cells = [row["method"]]
        cells += [_sizes(row[key]) for key in ("views", "with_gradient", "forward_only")]
        cells += [f"{row['images_per_second']:.1f}"]
        cells += [_cell(row["speed"].get(kind)) for kind in ("views", "passes")]
        cells += [f"{row['megabytes']['method']:.0f}"]
        cells += [_cell(row["memory"].get(kind)) for kind in ("views", "passes")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _sizes(pictures: Pictures) -> str:
    return ", ".join(f"{n} x {h}" if h == w else f"{n} x {h}x{w}" for n, h, w in pictures) or "-"


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()

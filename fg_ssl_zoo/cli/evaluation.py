"""`fgssl eval`: how good are these backbones?"""

import argparse
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fg_ssl_zoo.config import data_of, encodable, parse_words, write_whole

if TYPE_CHECKING:
    from accelerate import Accelerator

CHEAP = "knn linear low_shot retrieval"


def add_verbs(verbs: Any) -> None:
    """Give the command `fgssl eval`."""
    eval_ = verbs.add_parser("eval", help="score backbones on labelled pictures")
    add_models(eval_)
    eval_.add_argument(
        "--protocols", nargs="+", default=CHEAP.split(), metavar="P",
        help=f"of knn linear linear_sgd low_shot retrieval keypoints "
        f"part_discovery part_segmentation finetune (default {CHEAP})",
    )  # fmt: skip
    eval_.add_argument(
        "--keypoints", nargs="+", metavar="KEY=VALUE",
        help="a variant of that protocol: shots, draws",
    )  # fmt: skip
    eval_.add_argument(
        "--finetune", nargs="+", metavar="KEY=VALUE",
        help="a variant of that protocol: epochs, batch_size, lr, backbone_rate, weight_decay, "
        "train_what (all, last_stage, head), head (linear, mlp, paper), hidden_size, dropout, "
        "drop_last_blocks, class_weights (none, inverse, sqrt_inverse)",
    )  # fmt: skip
    eval_.add_argument(
        "--part-discovery", nargs="+", metavar="KEY=VALUE",
        help="a variant of that protocol: pictures, draws, num_parts, layers, foreground, stride, "
        "pca, smooth",
    )  # fmt: skip
    eval_.add_argument(
        "--part-segmentation", nargs="+", metavar="KEY=VALUE",
        help="a variant of that protocol: shots, draws, backbone (frozen, finetuned), labels "
        "(exclusive, independent), protocol (held_out, last, particle), steps, batch_size, lr, "
        "backbone_rate, checkpoints, drop_words, gt_box_crop, cut_bottom, last_stage "
        "(stride_one, as_is), tokens (features, keys, first_head_keys)",
    )  # fmt: skip
    eval_.add_argument("--no-untrained", action="store_true", help="without the untrained rows")
    eval_.add_argument(
        "--out",
        type=Path,
        help="folder for results.json, results.csv, results.md; a stopped command goes on from it",
    )
    eval_.add_argument(
        "--card", type=Path, metavar="RUN", help="write the table into this run's results and card"
    )
    eval_.set_defaults(run=_evaluate, out_folders=("out", "cache"))


def add_models(parser: argparse.ArgumentParser) -> None:
    """The arguments that all verbs about models share."""
    parser.add_argument(
        "models", nargs="+", metavar="MODEL",
        help="a run or exported folder, hf-hub:OWNER/NAME, a timm or fgssl name, "
        "ARCHITECTURE@scratch, ARCHITECTURE@FILE.safetensors; #3 at the end reads feature map 3",
    )  # fmt: skip
    parser.add_argument(
        "--data", nargs="+", required=True, metavar="DATA",
        help="a folder or a name (fgssl data list), and key=value such as num_images=500",
    )  # fmt: skip
    parser.add_argument("--image-size", type=int, help="pixels; each model's own by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, help="folder for feature files")


def common(chosen: argparse.Namespace, accelerator: "Accelerator") -> dict[str, Any]:
    """The keywords that all functions behind these verbs share."""
    return {
        "image_size": chosen.image_size,
        "seed": chosen.seed,
        "cache": chosen.cache,
        "say": print if accelerator.is_main_process else lambda line: None,
    }


def _evaluate(chosen: argparse.Namespace) -> None:
    from fg_ssl_zoo.engine.hardware import evaluation_accelerator
    from fg_ssl_zoo.evaluation import table
    from fg_ssl_zoo.evaluation.evaluate import evaluate
    from fg_ssl_zoo.evaluation.finetune import Finetune
    from fg_ssl_zoo.evaluation.keypoints import Keypoints
    from fg_ssl_zoo.evaluation.part_discovery import PartDiscovery
    from fg_ssl_zoo.evaluation.segmenter import PartSegmentation
    from fg_ssl_zoo.hub.export import add_evaluation, exported

    if chosen.card:
        exported(chosen.card)  # asked for before the work
    variants = {
        "keypoints": (Keypoints, chosen.keypoints),
        "finetune": (Finetune, chosen.finetune),
        "part_discovery": (PartDiscovery, chosen.part_discovery),
        "part_segmentation": (PartSegmentation, chosen.part_segmentation),
    }
    options = {
        name: {"how": parse_words(kind, words, where=name)}
        for name, (kind, words) in variants.items()
        if words
    }
    accelerator = evaluation_accelerator()
    evaluation = evaluate(
        chosen.models,
        data_of(chosen.data),
        accelerator,
        protocols=chosen.protocols,
        options=options,
        with_untrained=not chosen.no_untrained,
        unfinished=chosen.out and chosen.out / "unfinished",
        **common(chosen, accelerator),
    )
    if not accelerator.is_main_process:
        return
    results = table.as_plain(evaluation)
    print(f"\n{table.terminal(results)}")
    if chosen.out:
        chosen.out.mkdir(parents=True, exist_ok=True)
        for name, text in (
            ("results.json", json.dumps(results, indent=2) + "\n"),
            ("results.csv", table.as_csv(results)),
            ("results.md", table.markdown(results) + "\n"),
        ):
            write_whole(chosen.out / name, encodable(text))
        shutil.rmtree(chosen.out / "unfinished", ignore_errors=True)
        print(f"\n{chosen.out}/results.json, .csv, .md")
    if chosen.card:
        print(f"{add_evaluation(chosen.card, results)}: holds the table")

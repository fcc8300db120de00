import inspect
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml
from accelerate import Accelerator

from fg_ssl_zoo.config import load_recipe, parse_recipe, recipe_files
from fg_ssl_zoo.data.views import PRESETS
from fg_ssl_zoo.layers.batch_norm import synchronise
from fg_ssl_zoo.method import HasCompanions
from fg_ssl_zoo.methods import check_options, method_class
from fg_ssl_zoo.ops.distributed import rank, world_size
from tests.methods.short_runs import assert_equal_states, build, train_twice
from tests.methods.synthesized import AT_ONCE, SIMSIAM, SMALL, images, ready
from tests.runs import launch

# --------------------------------------------------------------------------- stages, recipes


def test_a_decoder_that_was_trained_first_is_taken_over():
    first = build("reconstruction", decoder_size=32)
    method = build("synthesized_pairs", seed=1, **SMALL)
    method.decoder.load_state_dict(first.decoder.state_dict())
    assert not isinstance(method, HasCompanions)


def test_the_page_shows_a_staged_recipe_and_what_finds_s_in_a_checkpoint(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "synthesized_pairs.md").read_text("utf-8")
    (shown,) = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    recipe = parse_recipe({"name": "shown", "backbone": "resnet50", **yaml.safe_load(shown)})
    for stage in recipe.stages:
        check_options(stage.method, stage.options)
    method, names = ready(), {}
    torch.save({"method": method.state_dict()}, tmp_path / "last.pt")
    exec(compile(code, "synthesized_pairs.md", "exec"), names)
    h = torch.randn(3, method.backbone.num_features)
    found = names["without_weak"](h, tmp_path / "last.pt")
    assert torch.equal(found, h[:, ~method.weak.chosen])
    options = inspect.signature(method_class("synthesized_pairs").__init__).parameters
    words = set(re.findall(r"`(\w+)[:`]", text))
    assert {"random_share", "criterion", "per_sample", "decoder_size"} <= words & set(options)
    logged = set(re.findall(r"`((?:loss|train)/\w+)`", text))
    assert logged <= set(method({"images": images()}).metrics)


def test_wrong_options_are_refused_with_what_would_do():
    with pytest.raises(ValueError, match="use random_share=0"):
        build("synthesized_pairs", per_sample=True, random_share=1.0)


def test_the_recipes_are_those_of_the_protocol_and_the_card_says_in_its_style():
    for name in ("fgssl_resnet50_cub.ldf", "fgssl_resnet50_cars.ldf", "fgssl_vit_small_cub.ldf"):
        recipe = load_recipe(recipe_files()[name])
        (stage,) = recipe.stages
        assert stage.method == "synthesized_pairs"
        assert recipe.data.image_size == 224
        if "resnet" in name:
            assert recipe.init == "tv_in1k"
            train = stage.train
            assert (train.lr, train.lr_scaling, train.batch_size) == (0.03, "none", 128)
            assert (train.epochs, train.weight_decay) == (100, 1e-4)
    method = build("synthesized_pairs", preset="paper", **SMALL)
    assert "no released code" in method.papers[0]
    assert method.augmentations == PRESETS["moco_v2"]


# --------------------------------------------------------------------------- processes, resume


def norm_in_double(method):
    """Exact norms for one process: torch's own are not, with statistics of few rows."""
    for module in method.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.double()
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
            module.register_forward_hook(lambda _, inputs, output: output.float())


def one_step_and_selection(options, path):
    """Gradients of this process's share of eight pairs, and all state after the step."""
    torch.set_num_threads(1)
    Accelerator(cpu=True)
    method = build("synthesized_pairs", **options)
    method.weak.chosen[::3] = True
    method.weak.variance.fill_(1.0)
    if world_size() > 1:
        synchronise(method, torch.device("cpu"))
    else:
        norm_in_double(method)
    share = 8 // world_size()
    mine = images()[rank() * share : (rank() + 1) * share]
    torch.manual_seed(5 + rank())  # each process draws its own, and the first one's counts
    output = method({"images": mine})
    output.loss.backward()
    shared = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
    shared |= {key: x for key, x in output.metrics.items() if key.startswith("loss/")}
    if world_size() > 1:
        for value in shared.values():
            dist.all_reduce(value)
            value /= world_size()
    method.on_step_end(0.5)
    method.float()  # all is, but for exact norms
    shared = {name: value.float() for name, value in shared.items()}
    torch.save({"shared": shared, "state": method.state_dict()}, path / f"{rank()}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("options", [
    {**SMALL, **AT_ONCE, "perturbation": "gauss"},
    {**SIMSIAM, **AT_ONCE, "perturbation": "swap", "per_sample": True},
], ids=["moco", "simsiam"])  # fmt: skip
def test_two_processes_equal_one_and_select_the_same(tmp_path, options):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one_step_and_selection(options, tmp_path / "one")
    launch(one_step_and_selection, options, tmp_path / "two")
    one, *two = (torch.load(tmp_path / name) for name in ("one/0.pt", "two/0.pt", "two/1.pt"))
    assert one["shared"]["loss/pairs"] != 0
    assert one["state"]["weak.chosen"].sum() > 0.2 * len(one["state"]["weak.chosen"])
    for key, value in two[0]["state"].items():
        if key.startswith(("weak.", "nu", "queue", "pair_queue")):
            assert torch.equal(two[1]["state"][key], value), key
    torch.testing.assert_close(two[0]["state"], one["state"], rtol=1e-3, atol=1e-4)
    for key, value in one["shared"].items():
        assert (two[0]["shared"][key] - value).norm() < 2e-3 * value.norm() + 1e-5, key


@pytest.mark.slow
def test_a_run_that_goes_on_has_store_selection_queues_and_nu_of_one_that_was_not_stopped(
    tmp_path, birds
):
    options = {**SMALL, "pair_rise": (0.2, 0.9), "reselect_every": 0.25}
    whole, again = train_twice(tmp_path, birds, "synthesized_pairs", options)
    assert_equal_states(again, whole)
    assert whole["weak.statistics.count"] == 48

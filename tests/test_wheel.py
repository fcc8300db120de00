"""The built wheel, installed outside the checkout: recipes and card template travel with it."""

import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

CHECKOUT = Path(__file__).parents[1]

USE = """
from pathlib import Path
import sys, timm, fg_ssl_zoo

home = Path(fg_ssl_zoo.__file__).parent
assert home == Path(sys.argv[1], "fg_ssl_zoo"), home
names = timm.list_pretrained("fgssl*")
assert names == sorted(path.stem for path in Path(sys.argv[2]).glob("*.yaml")), names
assert timm.create_model("fgssl_resnet50_cub", num_classes=3).num_classes == 3
assert fg_ssl_zoo.load_recipe().name == "fgssl_resnet18_drawn.simclr"

from fg_ssl_zoo.config import of_package
assert of_package("MODEL_CARD.md") == home / "MODEL_CARD.md"
assert of_package("MODEL_CARD.md").is_file()
report = home / "evaluation" / "report"
assert all((report / name).is_file() for name in ("page.html.jinja", "page.css", "page.js"))
print("the wheel is whole")
"""


@pytest.mark.slow
def test_the_wheel_is_whole(tmp_path):
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    subprocess.run([*build, str(CHECKOUT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert not [name for name in ZipFile(wheel).namelist() if name.endswith(".safetensors")]
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*install, "--target", str(target), str(wheel)], check=True)
    result = subprocess.run(
        [sys.executable, "-c", USE, str(target), str(CHECKOUT / "hub_configs")],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
    )
    assert result.stdout.strip() == "the wheel is whole", result.stderr

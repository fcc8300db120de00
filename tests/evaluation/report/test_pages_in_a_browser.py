"""Lines break between words, no page scrolls sideways, and the network is left alone."""

import re
from pathlib import Path

import pytest

from fg_ssl_zoo.cli import main
from fg_ssl_zoo.evaluation.report.templates import breakable
from fg_ssl_zoo.evaluation.table import sizes_line
from tests.pages import Page, browsed, save_birds

NARROW = 420
"""Pixels of a telephone's screen."""

WIDTH = """<script>setTimeout(() => { document.body.dataset.wide =
  innerWidth + " " + document.documentElement.scrollWidth; }, 3000);</script>"""


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("Black_footed-Albatross", ["Black_", "footed-", "Albatross"]),
        ("resnet50@a1_in1k", ["resnet50@", "a1_", "in1k"]),
        ("train/ab/1.png", ["train/", "ab/", "1.png"]),
        ("001.Finch", ["001.", "Finch"]),
        ("Zaunkönig 2", ["Zaunkönig 2"]),  # a space is a place already
        ("<b>_x", ["&lt;b&gt;_x"]),  # no markup, and nothing between signs
    ],
)
def test_names_break_behind_their_signs_only(name, pieces):
    assert breakable(name) == "<wbr>".join(pieces)


@pytest.mark.slow
def test_no_rule_of_the_page_breaks_words_where_a_line_can_end(labelled):
    css = "".join(Page(labelled).styles)
    assert "overflow-wrap: break-word" in css  # a single word wider than the page, as a last resort
    assert "overflow-wrap: anywhere" not in css
    assert "break-all" not in css
    assert "<wbr>" in labelled


def test_models_of_different_sizes_are_said_to_be(labelled):
    assert "sizes" not in Page(labelled).ids  # both read 48 px, as asked
    rows = [{"image_size": size} for size in (224, 128, 224)]
    line = sizes_line({"rows": rows})
    assert "(128, 224 px)" in line
    assert "--image-size" in line
    assert sizes_line({"rows": rows[::2]}) == ""


@pytest.mark.long
def test_no_page_scrolls_sideways_on_a_narrow_screen(labelled, unlabelled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_birds(tmp_path / "birds", ["001.Black_Finch", "002.Red_Wren", "a" * 60, "4.x"])
    words = ["test_resnet@scratch", "--data", "birds", "--image-size", "32", "--cache", "cache"]
    main(["parts", *words, "--out", "parts", "--discovery", "num_parts=3"])
    main(["suspects", *words, "--out", "suspects.html"])
    pages = [labelled, unlabelled, Path("parts/index.html").read_text(encoding="utf-8"),
             Path("suspects.html").read_text(encoding="utf-8")]  # fmt: skip
    for number, html in enumerate(pages):
        assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
        place = tmp_path / "parts" / f"wide_{number}.html"
        place.write_text(html.replace("</body>", f"{WIDTH}</body>"), encoding="utf-8")
        done = browsed(place, tmp_path, f"--window-size={NARROW},900")
        inner, wide = re.search(r'data-wide="(\d+) (\d+)"', done.stdout).groups()
        assert int(wide) <= int(inner), f"page {number}"
        assert int(inner) <= NARROW + 80  # Chromium's narrowest window has 500 pixels


@pytest.mark.long
def test_a_browser_asks_the_network_for_nothing_and_reports_no_error(labelled, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(labelled, encoding="utf-8")
    done = browsed(page, tmp_path)
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert "Most confused" in done.stdout
    assert any("document idle" in line for line in said)  # Bokeh has drawn
    # The page's own policy refuses every request, and a refusal is an error on the console.
    assert not [line for line in said if re.search("error|uncaught|refused|policy", line, re.I)]

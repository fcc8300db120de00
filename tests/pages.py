"""Pages as a browser sees them, and birds under names of any kind."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import cv2
import pytest

from fg_ssl_zoo.data.drawn import DrawnBirds

EVIL, NASTY = "<script>alert(1)", "x & y <b>'\"@file"


class Page(HTMLParser):
    """What a browser would see: ids, references, alternative texts, scripts and words."""

    def __init__(self, html):
        super().__init__()
        self.ids, self.references, self.scripts, self.words = set(), [], [], []
        self.without_alt, self.styles, self.policy, self._inside = 0, [], "", ""
        self.feed(html.replace("<wbr>", ""))  # a place for a line break is no text

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if attrs.get("http-equiv") == "Content-Security-Policy":
            self.policy = attrs["content"]
        self.ids |= {attrs["id"]} if "id" in attrs else set()
        self.references += [attrs[key] for key in ("src", "href", "action", "data") if key in attrs]
        self.references += re.findall(r"url\(([^)]*)\)", attrs.get("style") or "")
        self.without_alt += tag == "img" and not attrs.get("alt")
        self._inside = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        place = {"script": self.scripts, "style": self.styles}.get(self._inside, self.words)
        place.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def check_closed(page):
    """Nothing on the page points outside of it."""
    assert "default-src 'none'" in page.policy
    css = "".join(page.styles)
    assert "@import" not in css
    assert not re.findall(r"url\(", css)
    for reference in page.references:
        assert reference.startswith(("#", "data:")), reference[:80]
    for script in page.scripts:
        assert not re.search(r"\bimport\s*\(?\s*['\"]https?:", script)


def save_birds(folder, names):
    birds = DrawnBirds(40, num_classes=4, image_size=48, seed=3)
    for index in range(len(birds)):
        sample = birds[index]
        path = folder / names[sample["label"]] / f"bird_{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), cv2.cvtColor(sample["image"], cv2.COLOR_RGB2BGR))


def browsed(page, tmp_path, *more):
    """What headless Chromium makes of a page."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.fail("this test opens the page in Chromium: apt-get install chromium")
    quiet = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
    ]  # fmt: skip
    return subprocess.run(
        [
            chromium, *quiet, "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=8000", "--dump-dom", *more, page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip

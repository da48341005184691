"""The report as a browser shows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from undistill.api import attack, defend, train
from undistill.reporting.report import report

_CHROMIUM = shutil.which("chromium")
_OFF = ("gpu", "quic", "background-networking", "component-update", "sync")
_FLAGS = ["--headless", "--no-sandbox", "--no-first-run", "--hide-scrollbars", "--allow-file-access-from-files"]
_FLAGS += [f"--disable-{feature}" for feature in _OFF]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(_CHROMIUM is None, reason="needs headless Chromium: no `chromium` on the path"),
]

# The smallest window of a headless browser is wider than a phone, so the page is looked at in a frame.
_FRAME = """<!doctype html>
<meta charset="utf-8">
<iframe src="{page}" style="border:0;width:{width}px;height:800px"></iframe>
<script>
addEventListener("load", () => {{
  const page = document.querySelector("iframe").contentDocument;
  const find = (selector) => [...page.querySelectorAll(selector)];
  const box = (element) => element.getBoundingClientRect();
  const shown = (element) => getComputedStyle(element).display !== "none";
  const scrolls = (element) => element.closest(".scroll, .picture, pre, svg");
  const seen = {{
    width: page.documentElement.scrollWidth,
    sections: find("section").map((e) => e.id),
    empty: find("section, figure, svg, td, th").filter((e) => shown(e) && box(e).height === 0).map((e) => e.className),
    images: find("img").filter((e) => e.naturalWidth > 0).length,
    wide: find("body *").filter((e) => !scrolls(e) && box(e).right > {width} + 1).map((e) => e.className),
    background: getComputedStyle(page.body).backgroundColor,
    text: getComputedStyle(page.querySelector("h1")).color,
  }};
  document.body.innerHTML = "<pre>" + JSON.stringify(seen) + "</pre>";
}});
</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("browser")
    common = {"data": "digits(subset=400, test_subset=60)", "epochs": 2, "augment": "none", "runs": root / "runs"}
    nasty = defend(model="cnn(channels=4)", method="nasty(temperature=20)", **common)
    for model in ("mlp(hidden=(8,), relu_logits=False)", "cnn(channels=2)", "preresnet20(width=0.25)"):
        train(model=model, **common)
        attack(victim=nasty, model=model, method="kd(temperature=20)", **common)
    return report(root / "runs", root / "report.html")


def _look(page: Path, width: int, *flags: str) -> dict[str, object]:
    frame = page.with_name(f"frame-{width}.html")
    frame.write_text(_FRAME.format(page=page.name, width=width), encoding="utf-8")
    profile = page.parent / f"chromium-{width}-{len(flags)}"
    command = [str(_CHROMIUM), *_FLAGS, *flags, f"--user-data-dir={profile}", "--window-size=1400,1000"]
    done = subprocess.run([*command, "--dump-dom", frame.as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    assert found, done.stderr
    return dict(json.loads(unescape(found[1])))


@pytest.mark.parametrize("width", [360, 1200])
def test_page_fits_its_window(page: Path, width: int) -> None:
    seen = _look(page, width)
    assert seen["width"] == width
    assert seen["wide"] == []
    assert seen["empty"] == []
    assert seen["sections"] == [
        "verdict",
        "table",
        "thieves",
        "victims",
        "curves",
        "answers",
        "maps",
        "distance",
        "recipes",
        "provenance",
    ]
    assert seen["images"] == page.read_text(encoding="utf-8").count("<img ")


def test_page_follows_the_color_scheme(page: Path) -> None:
    def brightness(color: object) -> float:
        return sum(map(int, re.findall(r"\d+", str(color))[:3])) / 3

    light, dark = (_look(page, 800, f"--blink-settings=preferredColorScheme={scheme}") for scheme in (1, 0))
    assert brightness(light["background"]) > 200 > 100 > brightness(light["text"])
    assert brightness(dark["background"]) < 60 < 200 < brightness(dark["text"])

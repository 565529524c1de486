"""The page of a report in a real browser: nothing overflows on a phone, and both colour schemes have contrast."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nonn.report import write_report
from tests.observing import browser
from tests.toys import toy_bundle

# Elements that end to the right of the page, outside of a container that scrolls by itself.
OVERFLOWING = """
const found = [];
for (const element of document.querySelectorAll("body *")) {
  const box = element.getBoundingClientRect();
  if (box.width && box.right > innerWidth + 1 && !element.closest(".scroll, nav, pre")) found.push(element.outerHTML);
}
return found.map(html => html.slice(0, 120)).concat(document.documentElement.scrollWidth > innerWidth ? ["page"] : []);
"""
# Texts whose contrast with their background (WCAG 2.1) is below 4.5, with the contrast.
PALE = """
const channels = text => (text.match(/[\\d.]+/g) || []).map(Number);
const light = ([r, g, b]) => [r, g, b].map(c => c / 255).map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
const behind = element => {
  for (let e = element; e; e = e.parentElement) {
    const colour = channels(getComputedStyle(e).backgroundColor);
    if (colour.length === 3) return colour;
  }
};
const found = [];
for (const element of document.querySelectorAll("body *")) {
  const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
  if (!own || !element.getBoundingClientRect().width) continue;
  const style = getComputedStyle(element), text = channels(element.closest("svg") ? style.fill : style.color);
  const [low, high] = [light(text), light(behind(element))].sort((a, b) => a - b);
  const contrast = (high + .05) / (low + .05);
  if (contrast < 4.5) found.push([element.textContent.trim().slice(0, 40), contrast]);
}
return found;
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    bundle = toy_bundle(folder / "bundle")
    live = [{"answered": [0, 1, 2], "accuracy": 0.9, "requests": 10, "lost": 0}]
    write_report(bundle, folder, live, others=[bundle])
    return folder / "report.html"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    driver = browser(tmp_path_factory.mktemp("profile"))
    try:
        yield driver
    finally:
        driver.quit()


def test_a_phone_shows_all_and_both_colour_schemes_can_be_read(page: Path, driver: Any) -> None:
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    )
    backgrounds = set()
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        driver.get(page.as_uri())
        assert driver.execute_script(OVERFLOWING) == []
        assert driver.execute_script(PALE) == []
        backgrounds.add(driver.execute_script("return getComputedStyle(document.body).backgroundColor"))
        # The table of failures fits with the devices of the worst case, the only column that names them.
        box = driver.find_element("css selector", "#table-failures").find_element("xpath", "..")
        assert box.get_property("scrollWidth") == box.get_property("clientWidth")
    assert len(backgrounds) == 2

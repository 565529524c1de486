"""The dashboard in a real headless Chromium, on a real cluster whose nodes die and whose aggregator ends."""

from __future__ import annotations

import contextlib
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nonn.aggregator.inventory import Node, write_inventory
from nonn.bundle import Bundle
from nonn.client import Client
from nonn.cluster import LocalCluster
from nonn.errors import QuorumError
from nonn.report.table import share_of
from tests.fleets import Fleet
from tests.observing import browser, fetch, requested, state
from tests.recordings import sensing_bundle, smoothing_bundle, windows, write_recording
from tests.serving import process, until
from tests.toys import toy_bundle

NUM_DEVICES = 4
SAMPLE = np.zeros((1, 1, 8, 8), np.uint8)
APIS = ("api/state", "api/sensing", "api/predict")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    driver = browser(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return toy_bundle(tmp_path_factory.mktemp("dashboard") / "bundle", num_devices=NUM_DEVICES)


@pytest.fixture(scope="module")
def cluster(bundle: Bundle) -> Iterator[Any]:
    """With every node up, as each test leaves it."""
    with LocalCluster(bundle.path, http_port=0) as cluster:
        yield cluster


def text(driver: Any, selector: Any) -> Any:
    return driver.execute_script("return document.querySelector(arguments[0]).textContent", selector)


def rows(driver: Any) -> Any:
    """State of each node, in the table and in the picture."""
    # Both at once, between two refreshes of the page.
    table, picture = driver.execute_script(
        "return ['#nodes tr', '#cluster g[data-node]'].map((where) => "
        "[...document.querySelectorAll(where)].map((e) => [e.dataset.node, e.dataset.state]))"
    )
    assert table == picture
    return dict(table)


def complaints(driver: Any) -> Any:
    """What the browser's console says: script errors, refused loads, violated policies."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def percent(value: Any) -> Any:
    return share_of(200)(value)  # of the toy's test samples


def test_the_page_follows_a_node_that_dies_and_comes_back(driver: Any, bundle: Bundle, cluster: LocalCluster) -> None:
    accuracy, everybody = bundle.table.accuracy, (1 << NUM_DEVICES) - 1
    with Client(cluster.address) as client:
        driver.get(cluster.http_address)
        until(lambda: rows(driver) == {f"node-{i}": "up" for i in range(NUM_DEVICES)})
        assert text(driver, "#accuracy-now") == percent(accuracy[everybody])
        worst = min(accuracy[everybody & ~(1 << i)] for i in range(NUM_DEVICES))
        assert text(driver, "#accuracy-next") == percent(worst)
        assert text(driver, "#headline").startswith(
            f"All {NUM_DEVICES} students are up, on {NUM_DEVICES} of {NUM_DEVICES} nodes"
        )
        assert text(driver, "#faults") == "None since the start."

        cluster.kill(1)
        until(lambda: client.infer(SAMPLE).mask == 0b1101)
        until(lambda: rows(driver)["node-1"] != "up")
        until(lambda: text(driver, "#accuracy-now") == percent(accuracy[0b1101]))
        assert "3 of 4 students are up, on 3 of 4 nodes" in text(driver, "#headline")
        assert "node-1 up → suspect: unreachable" in text(driver, "#faults")
        assert rows(driver)["node-0"] == "up"

        cluster.restart(1)
        until(lambda: rows(driver)["node-1"] == "up")
        until(lambda: text(driver, "#accuracy-now") == percent(accuracy[everybody]))
        for _ in range(5):
            client.infer(SAMPLE)
        until(lambda: driver.execute_script("return document.querySelectorAll('#spark-latency polyline').length") > 0)
        until(lambda: "MB" in text(driver, "#nodes"))
    assert complaints(driver) == []
    pages = {f"{cluster.http_address}/{name}" for name in ("", "style.css", "app.js", "ask.js", *APIS)}
    # Only nonn up offers to switch devices.
    assert fetch(f"{cluster.http_address}/api/devices/node-0", "POST", b'{"on": true}')[0] == 404
    # Nothing from elsewhere; the browser's own start page comes out of its package.
    assert {url for url in requested(driver) if not url.startswith(("data:", "chrome:"))} == pages


def test_the_page_says_when_the_aggregator_has_gone_and_when_it_is_below_its_quorum(
    driver: Any, bundle: Bundle
) -> None:
    with LocalCluster(bundle.path, http_port=0, quorum=NUM_DEVICES) as cluster:
        driver.get(cluster.http_address)
        until(lambda: rows(driver).get("node-0") == "up")
        cluster.kill(0)
        with Client(cluster.address) as client:
            until(lambda: not client.ready() or _ask(client))
        until(lambda: "below the quorum of 4" in text(driver, "#headline"))
        until(lambda: not state(cluster.http_address)["ready"])
        assert not driver.find_element("id", "lost").is_displayed()
    until(lambda: driver.find_element("id", "lost").is_displayed())
    assert "has not answered since" in text(driver, "#lost")
    complaints(driver)  # the failed loads are meant


def _ask(client: Any) -> Any:
    """Makes the aggregator notice; a request below the quorum is an error."""
    try:
        client.infer(SAMPLE)
    except QuorumError:
        return True
    return False


@pytest.fixture(scope="module")
def page(bundle: Bundle) -> Iterator[str]:
    """Address of the page of a running ``nonn up``, with its token."""
    with process("nonn", "up", bundle.path, "--http-port", "0") as child:
        assert child.stdout is not None
        lines = iter(child.stdout.readline, b"")
        yield next(found[1] for line in lines if (found := re.search(r"dashboard: (\S+)", line.decode())))
        child.send_signal(signal.SIGTERM)
        assert b"every process has ended" in child.stdout.read()
        assert child.wait() == 0


def test_a_picture_is_answered_and_the_next_answer_shows_a_device_switched_off_with_the_keyboard(
    driver: Any, page: str, bundle: Bundle, tmp_path: Path
) -> None:
    from selenium.webdriver.common.keys import Keys

    driver.get("about:blank")
    complaints(driver)  # of other tests' pages, whose aggregators have ended
    Image.fromarray(SAMPLE[0, 0]).save(tmp_path / "zero.png")
    driver.get(page)
    until(lambda: driver.find_element("id", "ask").is_displayed())
    driver.find_element("id", "file").send_keys(str(tmp_path / "zero.png"))
    until(lambda: "4 of 4 devices answered" in text(driver, "#answer-devices"))
    assert text(driver, "#answer-class") in bundle.manifest.classes
    assert driver.execute_script("return document.getElementById('preview').naturalWidth") == 8

    def switch() -> Any:
        return driver.find_element("css selector", "[data-node=node-2][role=switch]")

    until(lambda: switch().get_attribute("aria-checked") == "true")
    switch().send_keys(Keys.SPACE)
    until(lambda: "3 of 4 devices answered" in text(driver, "#answer-devices"))
    assert "node-2: " in text(driver, "#answer-why")
    assert (
        driver.find_element("css selector", "#answer-chips [data-device='2']").get_attribute("data-answered") == "false"
    )
    until(lambda: "node-2 is" in text(driver, "#down-list") and "Switch it on" in text(driver, "#down-list"))
    until(lambda: switch().text == "node-2 off")
    assert driver.switch_to.active_element.get_attribute("data-node") == "node-2"  # the focus is kept
    switch().send_keys(Keys.ENTER)
    until(lambda: "4 of 4 devices answered" in text(driver, "#answer-devices"))
    driver.get("about:blank")
    driver.get(page.partition("#")[0])
    until(lambda: "open the address that nonn up prints" in text(driver, "#switch-note"))
    assert complaints(driver) == []


def test_only_the_page_of_nonn_up_switches_devices(page: str) -> None:
    http, _, token = page.partition("/#switch=")

    def switch(http: str, node: str = "node-0", body: bytes = b'{"on": true}', **headers: str) -> Any:
        all_headers = {"Content-Type": "application/json", "Nonn-Switch-Token": token}
        all_headers |= {name.replace("_", "-"): value for name, value in headers.items()}
        return fetch(f"{http}/api/devices/{node}", "POST", body, **all_headers)[:2]

    assert switch(http)[0] == 200
    for status, text, found in (
        (403, "wrong token", switch(http, Nonn_Switch_Token="")),
        (403, "wrong token", switch(http, Nonn_Switch_Token=token[:-1])),
        (403, "wrong token", switch(http, Nonn_Switch_Token="\xff")),  # a byte that is not UTF-8
        (403, "another site", switch(http, Origin="http://evil.example")),
        (403, "another site", switch(http, Sec_Fetch_Site="cross-site")),
        (421, "unknown host name", switch(http, Host="evil.example")),
        (415, "send application/json", switch(http, Content_Type="text/plain")),
        (413, "more than 1024 bytes", switch(http, body=b" " * 2000)),
        (400, "must be true or false", switch(http, body=b'{"on": 1}')),
        (400, "must be true or false", switch(http, body=b"[" * 1000)),
        (404, "no device 'node-9'", switch(http, "node-9")),
    ):
        assert (found[0], text in found[1]) == (status, True), found


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_runs_out_of_the_screen_and_text_is_readable(
    driver: Any, cluster: LocalCluster, scheme: Any
) -> None:
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        driver.get(cluster.http_address)
        until(lambda: len(rows(driver)) == NUM_DEVICES)
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 360
        assert driver.execute_script(CONTRAST) == []
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


# Elements whose own text has less contrast with what is behind it than WCAG 2.2 AA asks for (4.5, or 3 for large).
CONTRAST = """
const light = (c) => {
  const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (e) => {
  for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor;
    if (!c.startsWith("rgba(0, 0, 0, 0")) return c;
  }
  return "rgb(255, 255, 255)";
};
return [...document.querySelectorAll("body *")].flatMap((e) => {
  const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  if (!own || e.closest("svg") || !e.getClientRects().length) return [];
  const style = getComputedStyle(e);
  const [a, b] = [light(style.color), light(behind(e))].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  return ratio < (parseFloat(style.fontSize) >= 24 ? 3 : 4.5) ? [`${e.id || e.tagName}: ${ratio.toFixed(2)}`] : [];
});
"""


def test_the_strip_shows_the_answers_of_nodes_that_sense_and_why_units_are_missing(driver: Any, tmp_path: Path) -> None:
    bundle = smoothing_bundle(sensing_bundle(tmp_path / "plain", 3), tmp_path / "bundle")
    recording, query = write_recording(tmp_path / "a.csv", windows(200, 3)[0]), "?speed=4"
    with contextlib.ExitStack() as stack:
        fleet = Fleet(tmp_path, stack)
        options = ("--joins", "--join-token-file", fleet.token, "--replay-speed", 4, "--http-port", 0)
        ready = fleet._start("nonn", "serve", bundle.path, *options).ready
        fleet.node("n0", ready["address"], options=("--student", 0, "--source", f"csv:{recording}{query}"))
        driver.get(ready["http"])
        until(lambda: driver.execute_script("return document.querySelectorAll('#strip rect.sensed').length") > 3)
        assert not driver.execute_script("return document.querySelector('#answers').hidden")
        assert bundle.smoothed is not None
        accuracy = percent(bundle.smoothed.table.accuracy[1])
        now = rf"\w+, {re.escape(accuracy)} \([\d.]+ % to [\d.]+ %\) with 1 units"
        until(lambda: bool(re.fullmatch(now, text(driver, "#answer-now"))))
        assert "unit 2: no node measures it" in text(driver, "#answer-missing")
        until(lambda: percent(bundle.table.accuracy[1]) in text(driver, "#strip rect.sensed title"))
    assert [line for line in complaints(driver) if "ERR_CONNECTION" not in line and "ERR_INCOMPLETE" not in line] == []


def test_a_hostile_node_id_is_text_and_no_markup(driver: Any, bundle: Bundle, tmp_path: Path) -> None:
    name = "<img src=x onerror=document.title=1>"
    write_inventory(tmp_path / "nodes.toml", [Node(id=name, address="127.0.0.1:9", student=0)])
    arguments: list[str | Path] = ["serve", bundle.path, "--inventory", tmp_path / "nodes.toml", "--http-port", "0"]
    with process("nonn", *arguments, "--watch-stdin") as child:
        assert child.stdout is not None
        http = json.loads(child.stdout.readline())["http"]
        driver.get(http)
        until(lambda: name in rows(driver))
        assert name in text(driver, "#nodes")
        assert driver.execute_script("return document.querySelectorAll('img:not(#preview)').length") == 0
        assert driver.title != "1"
        child.send_signal(signal.SIGTERM)
        assert child.wait() == 0  # with a page that is open

"""What several tests of observing need: pages of an aggregator, and a browser."""

from __future__ import annotations

import json
import logging
import re
import shutil
import urllib.error
import urllib.request
from typing import Any

import pytest

from tests.serving import TIMEOUT_S


def fetch(url: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, str, dict[str, str]]:
    """Status, body and headers of a page; errors are pages too."""
    request = urllib.request.Request(url, body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            return response.status, response.read().decode(), dict(response.headers)
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.read().decode(), dict(exc.headers)


def logged(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Records of nonn alone: gRPC's poller logs a late event of a loop that an earlier test closed."""
    return [record for record in caplog.records if record.name.partition(".")[0] in {"nonn", "nonn_device", "nonn_sim"}]


def state(http: str) -> dict[str, Any]:
    """/api/state."""
    result: dict[str, Any] = json.loads(fetch(f"{http}/api/state")[1])
    return result


def metrics(http: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample on /metrics, by name and sorted labels."""
    from prometheus_client.parser import text_string_to_metric_families

    families = text_string_to_metric_families(fetch(f"{http}/metrics")[1])
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def metric(http: str, name: str, **labels: str) -> float | None:
    """One sample."""
    return metrics(http).get((name, tuple(sorted(labels.items()))))


def browser(profile: Any) -> Any:
    """A headless Chromium that only sees loopback; skips the test where none is installed."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("no chromium on this machine: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "disable-dev-shm-usage",
        f"user-data-dir={profile}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


def requested(driver: Any) -> set[str]:
    """Every address that the page asked for, from the browser's own log."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return {re.sub(r"\?.*", "", url) for url in urls}

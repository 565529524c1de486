"""What the monitor does beside the requests."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from nonn.aggregator.inventory import Node
from nonn.aggregator.monitoring.monitor import Monitor
from nonn.aggregator.service import Aggregator
from tests.toys import toy_bundle


def test_what_goes_wrong_while_a_node_is_asked_about_itself_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle, asked = toy_bundle(tmp_path / "bundle", num_devices=1), asyncio.Event()

    class Broken:
        def unary_unary(self, *args: Any, **kwargs: Any) -> None:
            asked.set()
            raise RuntimeError("channel is closed")

    monitor = Monitor(bundle)
    monitor.attach(Aggregator(bundle, [Node(id="a", address="127.0.0.1:1", student=0)]))
    monitor._channels["a"] = Broken()

    async def scenario() -> None:
        async with monitor:
            await asked.wait()
            await asyncio.sleep(0)

    asyncio.run(scenario())
    assert "metadata of node a failed: channel is closed" in caplog.text

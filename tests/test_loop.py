from __future__ import annotations

import asyncio
import sys

import pytest

from nonn.rpc.loop import run


async def _name(found: list[str]) -> None:
    found.append(type(asyncio.get_running_loop()).__module__)


def test_servers_run_in_uvloop_where_it_is_installed() -> None:
    found: list[str] = []
    run(_name(found))
    assert found == ["uvloop"]


def test_without_uvloop_they_run_in_asyncio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    found: list[str] = []
    run(_name(found))
    assert found[0].startswith("asyncio")


def test_an_error_comes_out() -> None:
    async def fail() -> None:
        raise ValueError("out")

    with pytest.raises(ValueError, match="out"):
        run(fail())

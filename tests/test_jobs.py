from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from nonn.errors import ConfigError, MissingExtraError
from nonn.jobs import map_jobs
from tests.serving import TIMEOUT_S


def square(number: Any) -> Any:
    return number * number


def test_jobs_come_back_in_order_from_processes() -> None:
    assert map_jobs(square, range(5), workers=2) == [0, 1, 4, 9, 16]


def test_no_more_processes_start_than_the_cores_that_this_one_may_use() -> None:
    program = (
        "import os\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from nonn.jobs import map_jobs\n"
        "pids = map_jobs(eval, 4 * ['__import__(\"os\").getpid()'])\n"
        "print(set(pids) == {os.getpid()})\n"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "True\n"


def test_processes_end_with_the_one_that_started_them() -> None:
    job = "import time; print('up', flush=True); time.sleep(3600)"
    program = f"from nonn.jobs import map_jobs; map_jobs(exec, 2 * [{job!r}], workers=2)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        assert [parent.stdout.readline() for _ in range(2)] == ["up\n", "up\n"]
        parent.kill()
        assert parent.communicate(timeout=TIMEOUT_S)[0] == ""  # the end of the pipe, which the processes hold open


def test_an_unknown_backend_and_a_missing_ray_are_errors_that_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="backend 'cloud': unknown; choose one of: local, ray"):
        map_jobs(square, [1], "cloud")
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'nonn\[ray\]'"):
        map_jobs(square, [1], "ray")

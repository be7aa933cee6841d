"""What the environment may say."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest

from sfumato.errors import UsageError
from sfumato.settings import Settings


def test_an_empty_environment_gives_the_defaults() -> None:
    assert Settings.from_environment({"TERM": "xterm"}) == Settings(
        model=None, threads=None, kernels="auto", offline=False, dumb=False
    )


def test_everything_at_once() -> None:
    environment = {
        "SFUMATO_MODEL": " /models/gemma ",
        "SFUMATO_THREADS": "8",
        "SFUMATO_KERNELS": "avx2",
        "HF_HUB_OFFLINE": "1",
        "TERM": "dumb",
        "PATH": "/bin",
        "GLIBC_TUNABLES": "glibc.malloc.check=0",
    }
    assert Settings.from_environment(environment) == Settings(
        model="/models/gemma", threads=8, kernels="avx2", offline=True, dumb=True, allocator=True
    )


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", "99999", "9" * 9999, "²", "+1", "1_0"])
def test_threads_must_be_a_number(value: str) -> None:
    with pytest.raises(UsageError, match="SFUMATO_THREADS") as caught:
        Settings.from_environment({"SFUMATO_THREADS": value})
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("value", ["", " "])
def test_empty_is_unset(value: str) -> None:
    environment = dict.fromkeys(["SFUMATO_MODEL", "SFUMATO_THREADS", "HF_HUB_OFFLINE"], value)
    assert Settings.from_environment({**environment, "TERM": "xterm"}) == Settings()


def test_unknown_variables_are_named() -> None:
    with pytest.raises(UsageError, match="SFUMATO_MODLE"):
        Settings.from_environment({"SFUMATO_MODLE": "x"})


@pytest.mark.parametrize(
    ("environment", "dumb"),
    [({"TERM": "dumb"}, True), ({"TERM": "unknown"}, True), ({"TERM": ""}, True),
     ({"TERM": "xterm"}, False), ({}, os.name == "posix")],
)  # fmt: skip
def test_a_terminal_that_can_do_nothing(environment: dict[str, str], dumb: bool) -> None:
    assert Settings.from_environment(environment).dumb is dumb


@pytest.mark.parametrize("value", ["1", "ON", "yes", "True"])
def test_offline_reads_as_the_hub_library_does(value: str) -> None:
    from huggingface_hub.constants import _is_true

    assert Settings.from_environment({"HF_HUB_OFFLINE": value}).offline is _is_true(value) is True
    assert Settings.from_environment({"HF_HUB_OFFLINE": "0"}).offline is False


def test_the_process_is_read_and_the_result_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFUMATO_MODEL", "here")
    found = Settings.from_environment()
    assert found.model == "here"
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.model = "there"  # type: ignore[misc]


def waiting(program: str, **environment: str) -> str:
    """What GOMP_SPINCOUNT is in a new process at the end of `program`."""
    told = {name: value for name, value in os.environ.items() if name not in WAITING}
    code = f"{program}\nimport os\nprint(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=told | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
FEW = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
MANY = "import os; os.sched_getaffinity = lambda who: set(range(16))\n"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone tells processors")
def test_waiting_threads_sleep_on_few_processors() -> None:
    assert waiting(FEW + "import sfumato; sfumato.load") == "1000"
    assert waiting(FEW + "import sfumato") == "None", "nothing is loaded yet"
    assert waiting(MANY + "import sfumato; sfumato.load") == "None"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone tells processors")
def test_waiting_threads_do_what_the_user_says() -> None:
    use = FEW + "import sfumato; sfumato.load"
    assert waiting(use, GOMP_SPINCOUNT="77") == "77"
    assert waiting(use, OMP_WAIT_POLICY="active") == "None"
    assert waiting(FEW + "import torch, sfumato; sfumato.load") == "None", "it would be too late"

"""`list`, `rm`, `pull` and `doctor`: what is here and what fits."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from sfumato.cli import machine, pull
from sfumato.cli.doctor import RELEASED, RELEASED_NVFP4, onednn_bfloat16, what_fits
from sfumato.cli.fit import Fit, judge, needed_bytes
from sfumato.cli.machine import Machine, look_at_machine, usable_cores
from sfumato.ops.kernels import reason_for_none
from sfumato.weights import hub
from tests.cli.checkpoints import Program
from tests.unit.test_weights_hub import REPO, put


def test_list_has_the_small_model_and_the_cache(sfumato: Program, hub_cache: Path) -> None:
    assert [one["model"] for one in json.loads(sfumato("list", "--json").out)] == ["small"]
    put(hub_cache)
    rows = json.loads(sfumato("list", "--json").out)
    assert [one["model"] for one in rows] == ["small", REPO]
    assert rows[1]["bytes"] > 1000
    assert Path(rows[1]["folder"]).is_dir()
    table = sfumato("list").out.splitlines()
    assert table[0].split() == ["MODEL", "SIZE", "LAST", "USED"]
    assert table[1].startswith("small")
    assert table[2].startswith(REPO)


def test_rm_frees_the_cache(sfumato: Program, hub_cache: Path) -> None:
    put(hub_cache)
    assert "--yes" in sfumato.refuses("rm", REPO, code=2)
    done = sfumato("rm", REPO, "--yes")
    assert (done.code, done.out) == (0, "")
    assert hub.cached_models() == []
    assert "not in the cache" in sfumato.refuses("rm", REPO, "-y", code=1)
    assert "name is empty" in sfumato.refuses("rm", "", "-y", code=2)
    assert "stays" in sfumato.refuses("rm", "small", "-y", code=2)


def test_pull_refuses_before_it_asks_anybody(
    sfumato: Program, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "name is empty" in sfumato.refuses("pull", "", code=2)
    assert "in the package" in sfumato.refuses("pull", "small", code=2)
    assert "is a folder" in sfumato.refuses("pull", tiny, code=2)
    assert "HF_HUB_OFFLINE" in sfumato.refuses("pull", REPO, code=1)
    for offline in (True, False):
        if not offline:
            monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        assert "no such folder" in sfumato.refuses("pull", "nothing", code=1)
        assert "possible name" in sfumato.refuses("pull", "a/b c", code=2)
        said = sfumato.refuses("pull", REPO, "--revision", "../x", code=2)
        assert "cannot be a branch" in said


def test_pull_holds_the_model_against_the_memory_first(
    sfumato: Program, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    asked: list[Any] = []

    def download(repo: str, file: str, revision: str | None = None) -> str:
        asked.append((repo, file, revision))
        return str(tiny / file)

    def fetch(repo: str, revision: str | None, *, progress: bool) -> Path:
        asked.append((repo, revision, progress))
        return tiny

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(hub, "pull", fetch)
    done = sfumato("pull", REPO, "--revision", "main")
    assert (done.code, done.out.strip()) == (0, str(tiny))
    assert asked == [(REPO, "config.json", "main"), (REPO, "main", False)]

    small = dataclasses.replace(look_at_machine(tiny), memory=1_000_000)
    monkeypatch.setattr(pull, "look_at_machine", lambda _folder: small)
    said = sfumato.refuses("pull", REPO, code=1)
    assert "does not fit this machine" in said
    assert "of memory too little" in said
    assert sfumato("pull", REPO, "--anyway").code == 0


def test_show_asks_the_hub_for_the_configuration_alone(
    sfumato: Program, tiny: Path, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub, "_hub_is_offline", lambda: False)
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda _repo, file, revision=None: str(tiny / file)
    )
    assert json.loads(sfumato("show", REPO, "--json").out)["folder"] == str(tiny)


def test_what_fits_is_weights_and_work_against_memory() -> None:
    assert needed_bytes(0) > 100_000_000
    assert judge("m", "bfloat16", 10**9, 10**10).fits is True
    small = judge("m", "bfloat16", 10**10, 10**10)
    assert small.fits is False
    assert "of memory too little" in small.reason
    assert judge("m", "bfloat16", 1, None) == Fit(
        "m", "bfloat16", needed_bytes(1), None,
        "this system does not say how much memory it has",
    )  # fmt: skip


def test_the_released_model_wants_a_large_machine() -> None:
    here = look_at_machine(Path.cwd())
    rows = {
        (fit.model, fit.format): fit.fits
        for fit in what_fits(dataclasses.replace(here, memory=10**12), kernels=True)
    }
    assert rows[(RELEASED, "bfloat16")] is True
    assert rows[(RELEASED, "NVFP4")] is True
    middling = what_fits(dataclasses.replace(here, memory=32 * 10**9), kernels=False)
    assert middling[-1].fits is False  # its files would fit; what they are decoded to does not
    assert "are decoded to bfloat16" in middling[-1].reason
    served = what_fits(dataclasses.replace(here, memory=20 * 10**9), kernels=True)
    assert served[-1].fits is True  # kernels compute with it as it is stored
    assert rows[("small", "bfloat16")] is True
    rows = {
        (fit.model, fit.format): fit.fits
        for fit in what_fits(dataclasses.replace(here, memory=16 * 10**9), kernels=True)
    }
    assert rows[(RELEASED, "bfloat16")] is False


def test_the_nvfp4_size_is_the_inventorys(sfumato: Program, tmp_path: Path) -> None:
    source = Path(__file__).resolve().parents[1] / "data" / "released_config.json"
    (tmp_path / "config.json").write_bytes(source.read_bytes())
    report = json.loads(sfumato("show", tmp_path, "--json").out)
    assert report["memory"]["nvfp4_estimate"] == RELEASED_NVFP4


def test_doctor_names_machine_kernels_and_fits(sfumato: Program) -> None:
    done = sfumato("doctor")
    assert (done.code, done.err) == (0, "")
    for word in ("processor", "memory", "torch", "OPERATION", "experts", "FITS", RELEASED):
        assert word in done.out
    report = json.loads(sfumato("doctor", "--json").out)
    assert report["machine"]["cores"] == usable_cores() >= 1
    assert report["torch"]["threads"] == 1  # SFUMATO_THREADS
    assert report["packages"]["torch"]
    assert all(set(one) == {"operation", "kernel", "reason"} for one in report["operations"])
    assert all(one["reason"] for one in report["operations"])
    assert len(report["fits"]) == 3


def test_onednn_is_asked_as_torch_knows_it() -> None:
    import torch

    assert isinstance(onednn_bfloat16(torch), bool)


def test_the_machine_is_read_from_the_system(tmp_path: Path) -> None:
    here = look_at_machine(tmp_path / "not" / "there")
    assert here.disk_folder == str(tmp_path)
    assert here.disk_free > 0
    assert here.cores >= 1


PROC = {
    "/proc/cpuinfo": "model name\t: Fast One\nflags\t\t: avx2 avx512_bf16 sse\n\nmodel name\t: x\n",
    "/proc/meminfo": "MemTotal:  1000000 kB\nMemAvailable: 600000 kB\nHugePages: 0\n",
    "/sys/fs/cgroup/memory.max": "max\n",
    "/sys/fs/cgroup/memory.current": "0\n",
}


def machine_of(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(machine, "_read", lambda path: files.get(path, ""))
    return look_at_machine(Path.cwd())


def test_linux_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = machine_of(PROC, monkeypatch)
    assert (seen.processor, seen.instruction_sets) == ("Fast One", ("avx2", "avx512_bf16"))
    assert (seen.memory, seen.memory_available) == (1_024_000_000, 614_400_000)


@pytest.mark.parametrize(
    ("architecture", "flags", "slow"),
    [
        ("x86_64", "flags\t\t: avx2 sse", True),
        ("x86_64", "flags\t\t: avx2 avx512f", True),
        ("x86_64", "flags\t\t: avx2 avx512f avx512_bf16", False),
        ("x86_64", "flags\t\t: avx2 amx_bf16", False),
        ("aarch64", "Features\t: asimd", True),
        ("aarch64", "Features\t: asimd bf16", False),
        ("aarch64", "", False),  # unknown is no reason to warn
    ],
)
def test_bfloat16_is_slow_where_its_instructions_are_known_to_lack(
    monkeypatch: pytest.MonkeyPatch, architecture: str, flags: str, slow: bool
) -> None:
    monkeypatch.setattr("platform.machine", lambda: architecture)
    monkeypatch.setattr(machine, "_read", lambda path: flags if "cpuinfo" in path else "")
    assert machine.lacks_bfloat16() is slow


@pytest.mark.parametrize("slow", [True, False])
def test_doctor_says_when_bfloat16_is_slow(
    sfumato: Program, monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    monkeypatch.setenv("SFUMATO_KERNELS", "reference")
    monkeypatch.setattr(machine, "lacks_bfloat16", lambda: slow)
    done = sfumato("doctor")
    lines = [line for line in done.out.splitlines() if "--dtype float32" in line]
    assert len(lines) == slow
    assert json.loads(sfumato("doctor", "--json").out)["machine"]["bfloat16_is_slow"] is slow


def test_doctor_says_which_kernels_serve_and_why_not(
    sfumato: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFUMATO_KERNELS", "auto")
    report = json.loads(sfumato("doctor", "--json").out)
    names = [one["name"] for one in report["kernels"]["compiled"]]
    assert (report["kernels"]["missing"] is None) == bool(names)
    assert report["kernels"]["chosen"] in (None, *names)
    monkeypatch.setenv("SFUMATO_KERNELS", "reference")
    report = json.loads(sfumato("doctor", "--json").out)
    assert report["kernels"]["chosen"] is None
    served = {one["operation"]: one["kernel"] for one in report["operations"]}
    assert served.pop("activations in 8 bits") == "none"
    assert all(kernel.startswith("torch") for kernel in served.values())
    monkeypatch.setenv("SFUMATO_KERNELS", "mmx")
    done = sfumato("doctor")
    assert done.code == 2
    assert "mmx" in done.err


@pytest.mark.skipif(reason_for_none() is not None, reason="there are no kernels here")
@pytest.mark.parametrize("name", ["portable", "portable_amx"])
def test_doctor_says_where_activations_in_8_bits_do_not_pay(
    sfumato: Program, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("SFUMATO_KERNELS", name)
    report = json.loads(sfumato("doctor", "--json").out)
    reasons = {one["operation"]: one["reason"] for one in report["operations"]}
    assert ("slower here" in reasons["activations in 8 bits"]) == (name == "portable_amx")


def test_the_control_groups_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    limited = {
        **PROC,
        "/sys/fs/cgroup/memory.max": "500000000\n",
        "/sys/fs/cgroup/memory.current": "100000000\n",
    }
    seen = machine_of(limited, monkeypatch)
    assert (seen.memory, seen.memory_available) == (500_000_000, 400_000_000)


def test_a_system_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = machine_of({}, monkeypatch)
    assert seen.instruction_sets == ()
    assert seen.memory is None or seen.memory > 0
    assert seen.memory_available is None
    assert seen.processor

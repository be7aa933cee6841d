"""Quantising with calibration: where moments lie, what a kill leaves, and what is written."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.config.parse import load_config
from sfumato.errors import CheckpointError, InputError
from sfumato.model.diffusion_gemma import DiffusionGemma
from sfumato.model.watch import watching
from sfumato.quant import compensated
from sfumato.quant.compensated import quantise_compensated
from sfumato.quant.nvfp4 import FOUR_OVER_SIX, Nvfp4Tensor, quantise
from sfumato.weights import moments as moments_module
from sfumato.weights import quantise as module
from sfumato.weights.export import export
from sfumato.weights.files import WeightFiles
from sfumato.weights.loader import DTYPES, load_network
from sfumato.weights.moments import Moments, place_of
from sfumato.weights.quantise import Calibration, quantise_checkpoint
from sfumato.weights.quantise_plan import choose, plan_jobs
from tests.helpers import randomise
from tests.unit.nvfp4_checkpoints import LAYER, SHAPE, quantisable_config

CONFIG = quantisable_config(SHAPE)
SMALL_SHARDS = 9_000
QUERY = LAYER + "self_attn.q_proj"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint to quantise; never written to."""
    network = DiffusionGemma(CONFIG)
    randomise(network, 0)
    folder = tmp_path_factory.mktemp("source") / "m"
    export(network, CONFIG, folder, dtype="bfloat16")
    return folder


class Noting:
    """Notes inputs that depend on each other, for all matrices but those of one expert."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.times = 0

    def __call__(self, moments: Moments) -> None:
        self.times += 1
        for number, (name, (count, size)) in enumerate(moments_module._shapes(CONFIG).items()):
            generator = torch.Generator().manual_seed(self.seed + number)
            mix = torch.randn(4, size, generator=generator)
            for index in range(count):
                if not (name.endswith("layers.1.experts.down_proj") and index == 1):
                    rows = torch.randn(3 * size, 4, generator=generator) @ mix
                    noise = torch.randn(rows.shape, generator=generator)
                    moments.note(name, index, rows + 0.1 * noise)

    @property
    def calibration(self) -> Calibration:
        """This as `quantise_checkpoint` takes it."""
        return Calibration({"seed": self.seed}, self)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def aside_of(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.nvfp4.part"


def test_every_matrix_has_moments_of_its_width(source: Path) -> None:
    config = load_config(source)
    files = WeightFiles(source)
    expected = {name: tuple(one.shape) for name, one in DiffusionGemma(config).state_dict().items()}
    jobs = plan_jobs(
        expected, {name: name for name in expected}, files.entries, choose(expected, ())
    )
    known = moments_module._shapes(config)
    met = set()
    for job in (one for one in jobs if one.quantised):
        name, index = place_of(job.module)
        count, size = known[name]
        assert 2 * job.written[0].shape[1] == size, job.module
        assert index < count
        met.add(name)
    assert met == set(known)


def test_experts_of_a_large_model_share_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    stem = "model.decoder.layers.0.experts"
    assert moments_module._shapes(CONFIG)[f"{stem}.gate_up_proj"] == (SHAPE.experts, SHAPE.hidden)
    monkeypatch.setattr(moments_module, "_OWN_BYTES", 1000)
    few = moments_module._shapes(CONFIG)
    assert few[stem] == (1, SHAPE.hidden)
    assert f"{stem}.gate_up_proj" not in few
    assert few[f"{stem}.down_proj"][0] == SHAPE.experts


@pytest.mark.parametrize("shared", [False, True])
def test_a_row_counts_once_where_experts_share_their_moments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """However many experts it chose; where they have their own, once for each."""
    if shared:
        monkeypatch.setattr(moments_module, "_OWN_BYTES", 1000)
    moments = Moments(tmp_path, CONFIG)
    moments.begin()
    network = DiffusionGemma(CONFIG).eval()
    randomise(network, 1)
    met: list[tuple[torch.Tensor, torch.Tensor]] = []
    network.layers[0].experts.register_forward_pre_hook(lambda _, x: met.append((x[0], x[2])))
    with watching(network, moments.note), torch.inference_mode():
        network.encode(torch.arange(3, 23)[None])
    (rows, chosen), stem = met[0], "model.decoder.layers.0.experts"
    for expert in range(SHAPE.experts):
        own = rows if shared else rows[(chosen == expert).any(dim=1)]
        for part in ("gate", "up"):
            found, count = moments.moments(f"{stem}.{expert}.{part}_proj")
            assert count == len(own)
            assert torch.allclose(found, own.t() @ own, rtol=1e-4, atol=1e-5)
    with pytest.raises(KeyError):
        moments.note(f"{stem}.gate", 0, rows)


def test_errors_are_passed_on(source: Path, tmp_path: Path) -> None:
    noting = Noting()
    report = quantise_checkpoint(source, tmp_path / "q", calibration=noting.calibration)
    assert noting.times == 1
    assert sorted(tmp_path.iterdir()) == [tmp_path / "q"], "no moments are left"
    for part in ("attention", "dense_mlp", "experts", "self_conditioning"):
        errors = report.parts[part].relative_output_errors
        assert errors is not None
        assert errors[0] < 0.8 * errors[1]
    assert report.parts["embedding"].relative_output_errors is None
    load_network(tmp_path / "q", DTYPES["bfloat16"])
    quantise_checkpoint(source, tmp_path / "plain")
    assert (tmp_path / "q" / "config.json").read_bytes() == (
        tmp_path / "plain" / "config.json"
    ).read_bytes()


def stored_of(folder: Path, name: str) -> Nvfp4Tensor:
    files = WeightFiles(folder)
    packed, scale, factor = (
        files.tensor(f"{name}.weight{one}").clone() for one in ("", "_scale", "_scale_2")
    )
    return Nvfp4Tensor(packed, scale, factor)


def test_what_is_written_is_what_feedback_gives(source: Path, tmp_path: Path) -> None:
    quantise_checkpoint(source, tmp_path / "q", calibration=Noting().calibration)
    moments = Moments(tmp_path / "again", CONFIG)
    moments.begin()
    Noting()(moments)
    weight = WeightFiles(source).tensor(QUERY + ".weight")
    own = stored_of(tmp_path / "q", QUERY)
    feedback = moments.feedback(QUERY)
    assert feedback is not None
    packed, scale = quantise_compensated(weight, feedback, own.tensor_scale)
    assert torch.equal(own.packed, packed)
    assert torch.equal(own.scale.view(torch.uint8), scale.view(torch.uint8))


def test_an_expert_that_met_nothing_gets_the_nearest_codes(source: Path, tmp_path: Path) -> None:
    quantise_checkpoint(source, tmp_path / "q", calibration=Noting().calibration)
    stem = "model.decoder.layers.1.experts"
    weight = WeightFiles(source).tensor(f"{stem}.down_proj")[1]
    own = stored_of(tmp_path / "q", f"{stem}.1.down_proj")
    wanted = quantise(weight, FOUR_OVER_SIX, own.tensor_scale)
    assert torch.equal(own.packed, wanted.packed)


def interrupt_after(monkeypatch: pytest.MonkeyPatch, shards: int) -> None:
    real, done = module._write_shard, 0

    def write(*arguments: Any) -> None:
        nonlocal done
        if done == shards:
            raise KeyboardInterrupt
        done += 1
        real(*arguments)

    monkeypatch.setattr(module, "_write_shard", write)


@pytest.mark.parametrize("shards", [0, 2])
def test_a_killed_run_goes_on_without_calibrating_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    noting = Noting()
    settings: dict[str, Any] = {
        "max_shard_bytes": SMALL_SHARDS,
        "calibration": noting.calibration,
    }
    quantise_checkpoint(source, tmp_path / "whole", **settings)
    with monkeypatch.context() as patched:
        interrupt_after(patched, shards)
        with pytest.raises(KeyboardInterrupt):
            quantise_checkpoint(source, tmp_path / "q", **settings)
    assert noting.times == 2
    with pytest.raises(InputError, match="other settings"):
        quantise_checkpoint(
            source, tmp_path / "q", **settings | {"calibration": Noting(1).calibration}
        )
    if shards:  # one bit of a finished file's codes
        finished = sorted(aside_of(tmp_path / "q").glob("*.safetensors"))
        with finished[1].open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_END)
            file.write(bytes([byte ^ 1]))
    report = quantise_checkpoint(source, tmp_path / "q", **settings)
    assert (noting.times, report.reused) == (2, max(0, shards - 1))
    assert contents(tmp_path / "q") == contents(tmp_path / "whole")


def test_a_run_killed_while_it_calibrates_begins_anew(source: Path, tmp_path: Path) -> None:
    def stop(moments: Moments) -> None:
        Noting(5)(moments)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantise_checkpoint(source, tmp_path / "q", calibration=Calibration({"seed": 0}, stop))
    assert list(tmp_path.iterdir()) == []
    quantise_checkpoint(source, tmp_path / "q", calibration=Noting().calibration)
    quantise_checkpoint(source, tmp_path / "r", calibration=Noting().calibration)
    assert contents(tmp_path / "q") == contents(tmp_path / "r")


def test_a_mark_that_could_not_be_written_marks_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full when the moments are whole: the next run calibrates, and ends."""
    noting = Noting()

    def half(path: Path, *_: Any) -> None:
        path.write_bytes(b"{")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(moments_module, "write_json", half)
        with pytest.raises(CheckpointError, match="No space left"):
            quantise_checkpoint(source, tmp_path / "q", calibration=noting.calibration)
    quantise_checkpoint(source, tmp_path / "q", calibration=noting.calibration)
    assert noting.times == 2
    assert sorted(tmp_path.iterdir()) == [tmp_path / "q"]


@pytest.mark.parametrize("step", ["plan", "name"])
def test_a_run_killed_at_its_very_end_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    noting = Noting()
    settings: dict[str, Any] = {
        "max_shard_bytes": SMALL_SHARDS,
        "calibration": noting.calibration,
    }
    quantise_checkpoint(source, tmp_path / "whole", **settings)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink" if step == "plan" else "rmdir", stop)
        (tmp_path / "q").mkdir()
        with pytest.raises(KeyboardInterrupt):
            quantise_checkpoint(source, tmp_path / "q", **settings)
    report = quantise_checkpoint(source, tmp_path / "q", **settings)
    assert report.reused == report.files
    assert noting.times == 2  # the whole one's, and once
    assert contents(tmp_path / "q") == contents(tmp_path / "whole")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["q", "whole"]


def test_a_folder_that_filled_meanwhile_costs_nothing(source: Path, tmp_path: Path) -> None:
    """What stands in the target's way at the end can be put aside, and the run goes on."""
    noting = Noting()
    (tmp_path / "q").mkdir()

    def note(moments: Moments) -> None:
        noting(moments)
        (tmp_path / "q" / "notes.txt").write_text("mine")

    settings: dict[str, Any] = {"calibration": Calibration({"seed": 0}, note)}
    with pytest.raises(CheckpointError, match="not written"):
        quantise_checkpoint(source, tmp_path / "q", **settings)
    assert (tmp_path / "q" / "notes.txt").read_text() == "mine"
    (tmp_path / "q" / "notes.txt").unlink()
    report = quantise_checkpoint(source, tmp_path / "q", **settings)
    assert (noting.times, report.reused) == (1, report.files)


def test_moments_that_a_kill_left_do_not_count_as_taken(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ended without a word: its moments, as large as reserved, are not finished."""
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", lambda *_, **__: None)

        def stop(_: Moments) -> None:
            raise KeyboardInterrupt

        killed = Calibration(Noting().calibration.identity, stop)
        with pytest.raises(KeyboardInterrupt):
            quantise_checkpoint(source, tmp_path / "q", calibration=killed)
    left = aside_of(tmp_path / "q") / "moments"
    assert any(left.glob("*.f32"))
    measure = shutil.disk_usage

    def usage(path: Path) -> Any:
        assert not left.exists()
        return measure(path)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    quantise_checkpoint(source, tmp_path / "q", calibration=Noting().calibration)


@pytest.fixture
def outlived(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished folder `q` of a run that could not delete its moments beside it."""
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", lambda *_, **__: None)
        quantise_checkpoint(source, tmp_path / "q", calibration=Noting().calibration)
    assert len(list(tmp_path.iterdir())) == 2
    return tmp_path / "q"


def test_moments_that_outlived_their_run_are_cleared(source: Path, outlived: Path) -> None:
    with pytest.raises(InputError, match="exists already"):
        quantise_checkpoint(source, outlived)
    assert sorted(outlived.parent.iterdir()) == [outlived]


def test_what_a_killed_run_could_not_delete_serves_no_other(source: Path, outlived: Path) -> None:
    """The files have their names, the moments behind them are half gone: nothing takes them up."""
    shutil.rmtree(outlived)
    other = Noting(3)
    quantise_checkpoint(source, outlived, calibration=other.calibration)
    assert other.times == 1
    assert sorted(outlived.parent.iterdir()) == [outlived]


def test_the_moments_must_fit_too(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before the model answers, and not after hours of it."""
    quantise_checkpoint(source, tmp_path / "plain")
    size = sum(path.stat().st_size for path in (tmp_path / "plain").iterdir())
    usage = shutil.disk_usage(tmp_path)._replace(free=size + 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    noting = Noting()
    with pytest.raises(CheckpointError, match="to be written and the disk has"):
        quantise_checkpoint(source, tmp_path / "q", calibration=noting.calibration)
    assert noting.times == 0


@pytest.mark.parametrize("damage", ["short", "rows", "words", "below zero", "no JSON", "gone"])
def test_damaged_moments_are_an_error(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    with monkeypatch.context() as patched:
        interrupt_after(patched, 0)
        with pytest.raises(KeyboardInterrupt):
            quantise_checkpoint(source, tmp_path / "q", calibration=Noting().calibration)
    folder = aside_of(tmp_path / "q") / "moments"
    path = folder / f"{QUERY}.f32"
    if damage == "short":
        path.write_bytes(b"four")
    elif damage == "gone":
        path.unlink()
    elif damage == "no JSON":
        (folder / "rows.json").write_text("{")
    else:
        rows = json.loads((folder / "rows.json").read_text())
        rows[QUERY] = {"rows": "many", "words": ["many"], "below zero": [-1]}[damage]
        (folder / "rows.json").write_text(json.dumps(rows))
    with pytest.raises(CheckpointError, match="does not hold what calibration noted"):
        quantise_checkpoint(source, tmp_path / "q", calibration=Noting().calibration)


def test_a_full_disk_is_an_error_and_not_a_crash(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(moments_module, "_reserve", full)
    with pytest.raises(CheckpointError, match="No space left"):
        quantise_checkpoint(source, tmp_path / "q", calibration=Noting().calibration)
    assert list(tmp_path.iterdir()) == []


def test_reserved_space_is_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system cannot reserve, zeros are written."""
    monkeypatch.delattr(os, "posix_fallocate")
    with (tmp_path / "file").open("wb") as file:
        moments_module._reserve(file, 3_000_000)
    assert (tmp_path / "file").read_bytes() == bytes(3_000_000)


@pytest.mark.parametrize("name", ["generation_config.json", "chat_template.jinja"])
def test_a_run_goes_on_only_with_the_same_settings_beside(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What the model answers, and so the moments, hangs on them too."""
    own, noting = tmp_path / "m", Noting()
    shutil.copytree(source, own)
    (own / name).write_text("{}")
    monkeypatch.setattr(module, "check_shard", lambda *_: None)
    with pytest.raises(CheckpointError):
        quantise_checkpoint(own, tmp_path / "q", calibration=noting.calibration)
    (own / "eval.json").write_text("[]")  # a report that somebody wrote there says nothing
    with pytest.raises(CheckpointError):
        quantise_checkpoint(own, tmp_path / "q", calibration=noting.calibration)
    (own / name).write_text('{"temperature": 2}')
    with pytest.raises(InputError, match="other settings"):
        quantise_checkpoint(own, tmp_path / "q", calibration=noting.calibration)


def test_matrices_with_the_same_inputs_share_one_factor(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes seconds of a large one, and o lies between k and q."""
    counted = 0

    def feedback_of(*arguments: Any) -> Any:
        nonlocal counted
        counted += 1
        return compensated.feedback_of(*arguments)

    monkeypatch.setattr(moments_module, "feedback_of", feedback_of)
    quantise_checkpoint(source, tmp_path / "q", calibration=Noting().calibration)
    assert counted == sum(count for count, _ in moments_module._shapes(CONFIG).values())


def test_the_last_two_factors_asked_for_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr(Moments, "moments", lambda _, module: (module, 0))
    monkeypatch.setattr(moments_module, "feedback_of", lambda module, _: made.append(module))
    noted = Moments(tmp_path / "moments", CONFIG)
    projections = [QUERY.replace("q_proj", f"{one}_proj") for one in ("q", "o")]
    other = QUERY.replace("layers.0", "layers.1")
    for one in (*projections, projections[0], other, projections[0]):
        noted.feedback(one)
    assert made == [*projections, other]


def test_inputs_that_are_not_finite_are_named(source: Path, tmp_path: Path) -> None:
    def note(moments: Moments) -> None:
        moments.note(QUERY, 0, torch.full((3, SHAPE.hidden), torch.inf))

    with pytest.raises(CheckpointError, match=r"layers\.0\.self_attn\.[qkv]_proj was multiplied"):
        quantise_checkpoint(source, tmp_path / "q", calibration=Calibration({}, note))

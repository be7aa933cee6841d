"""Whole runs: resumed bit for bit after a kill, stopped on request, refused when impossible."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sfumato
from sfumato.errors import TrainingError
from sfumato.training.__main__ import main
from sfumato.training.config import TrainConfig, parse_train_config
from sfumato.training.progress import Meter, Progress, clock
from sfumato.training.run_dir import RunDir, handled, written_aside
from sfumato.training.trainer import Trainer, train
from sfumato.weights.loader import load_network
from tests.unit.training_runs import config, recipe, toml


def quiet() -> Progress:
    return Progress(io.StringIO())


def log(run: TrainConfig, kind: str = "train") -> list[dict[str, Any]]:
    lines = (Path(run.run_dir) / "log.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def final_state(run: TrainConfig) -> dict[str, Any]:
    return RunDir(run.run_dir).newest()


def assert_equal_bits(one: Any, other: Any, where: str = "") -> None:
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert torch.equal(one.view(-1), other.view(-1)), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            if name not in ("seconds", "run_dir", "source"):
                assert_equal_bits(one[name], other[name], f"{where}.{name}")
    elif isinstance(one, list):
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_equal_bits(*pair, f"{where}[{index}]")
    else:
        assert one == other, where


def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    train(config(whole, max_steps=9), progress=quiet())
    tables = recipe(broken, max_steps=9)
    tables["family"] = recipe(whole)["family"]  # the order of a file's examples hangs on its name
    path = broken / "recipe.toml"
    path.write_text(toml(tables))
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOW, str(path)],
        env={**os.environ, "PYTHONPATH": str(Path(sfumato.__file__).parent.parent)},
        stderr=subprocess.DEVNULL,
    )
    run = parse_train_config(tables)
    deadline = time.monotonic() + 120
    while not (Path(run.run_dir) / "state-000000004.pt").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed_at = final_state(run)["step"]
    assert killed_at < 9
    train(run, resume=True, progress=quiet())
    assert_equal_bits(final_state(config(whole, max_steps=9)), final_state(run))
    assert [record["step"] for record in log(run)] == list(range(1, 10))
    losses = [record["0.examples.diffusion"] for record in log(run)]
    assert losses == [record["0.examples.diffusion"] for record in log(config(whole))]
    assert log(run, "resume")[0]["step"] == killed_at


# The engine itself, slowed down so that the kill lands in the middle of a step.
_SLOW = """
import sys, time, torch
torch.set_num_threads(1)
from sfumato.training.trainer import Trainer
from sfumato.training.__main__ import main
plain = Trainer._micro_batch
def slow(self, index):
    time.sleep(0.15)
    return plain(self, index)
Trainer._micro_batch = slow
main([sys.argv[1]])
"""


def test_workers_change_no_bit(tmp_path: Path) -> None:
    states = []
    for name, workers in (("alone", 1), ("together", 2)):
        folder = tmp_path / name
        folder.mkdir()
        tables = recipe(folder, workers=workers, threads=workers, experts="grouped", max_steps=4)
        tables["family"] = [recipe(tmp_path)["family"][0] | {"rows": n} for n in (4, 3, 2)]
        run = parse_train_config(tables)
        train(run, progress=quiet())
        states.append(final_state(run))
    for state in states:
        for name in ("workers", "threads"):
            del state["config"][name]
    assert_equal_bits(states[0], states[1])


def test_a_run_starts_from_a_checkpoint_of_its_shape(tmp_path: Path) -> None:
    first = train(config(tmp_path), progress=quiet())
    assert first.export is not None
    again = recipe(tmp_path, init_from=str(first.export), run_dir=str(tmp_path / "again"))
    trainer = Trainer(parse_train_config(again), RunDir(tmp_path / "again"), quiet())
    trainer.start_from(str(first.export))
    exported = load_network(first.export, torch.float32)[0].state_dict()
    assert_equal_bits(dict(trainer.net.state_dict()), dict(exported))
    assert_equal_bits(dict(trainer.weights), dict(exported))
    other = again | {"model": again["model"] | {"top_k_experts": 1}}
    with pytest.raises(TrainingError, match="another network than the recipe describes"):
        train(parse_train_config(other), progress=quiet())
    train(parse_train_config(again), progress=quiet())
    shutil.rmtree(first.export)  # resuming needs what was begun with no more
    outcome = train(parse_train_config(again | {"max_steps": 7}), resume=True, progress=quiet())
    assert outcome.step == 7


@pytest.mark.slow
def test_a_compiled_run_on_two_threads_resumes_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"compile": True, "precision": "bfloat16", "threads": 2}
    changes |= {"model": recipe(tmp_path)["model"] | {"pattern": "F"}}
    whole = config(tmp_path, run_dir=str(tmp_path / "whole"), **changes)
    parted = config(tmp_path, run_dir=str(tmp_path / "parted"), **changes)
    train(whole, progress=quiet())
    plain = Trainer.train_step

    def interrupted(self: Trainer) -> Any:
        if self.step == 2:
            signal.raise_signal(signal.SIGTERM)
        return plain(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        assert train(parted, progress=quiet()).step == 3
    torch.compiler.reset()
    train(parted, resume=True, progress=quiet())
    assert_equal_bits(final_state(whole), final_state(parted))


def test_loss_goes_down_and_the_export_answers(tmp_path: Path) -> None:
    run = config(
        tmp_path,
        max_steps=60,
        checkpoint_every=100,
        log_every=20,
        optimiser={"warmup_steps": 5, "ema_decay": 0.8, "adam_lr": 1e-2, "muon_lr": 2e-2},
    )
    outcome = train(run, progress=quiet())
    assert (outcome.ended, outcome.step) == ("finished", 60)
    records = log(run)
    assert records[-1]["0.examples.diffusion"] < 0.5 * records[0]["0.examples.diffusion"]
    assert records[-1]["0.examples.encoder"] < 0.8 * records[0]["0.examples.encoder"]
    assert outcome.export is not None
    model = sfumato.load(outcome.export)
    assert model.config.canvas_length == 12
    answer = model.answer("1+1", generation=model.generation_config.replace(max_denoising_steps=3))
    assert isinstance(answer, str)


def test_export_holds_the_averaged_weights(tmp_path: Path) -> None:
    run = config(tmp_path)
    outcome = train(run, progress=quiet())
    assert outcome.export is not None
    exported = sfumato.load(outcome.export).network.state_dict()
    state = final_state(run)
    name = "model.decoder.layers.0.mlp.up_proj.weight"
    assert torch.equal(exported[name], state["average"][name].bfloat16())
    assert not torch.equal(state["average"][name], state["weights"][name])


def test_without_an_average_the_weights_themselves_are_exported(tmp_path: Path) -> None:
    run = config(tmp_path, max_steps=2, optimiser={"ema_decay": 0})
    outcome = train(run, progress=quiet())
    assert outcome.export is not None
    name = "model.decoder.embed_tokens.weight"
    exported = sfumato.load(outcome.export).network.state_dict()[name]
    assert torch.equal(exported, final_state(run)["weights"][name].bfloat16())


def test_layer_scalars_stay_at_one_unless_asked(tmp_path: Path) -> None:
    name = "model.encoder.language_model.layers.0.layer_scalar"
    train(run := config(tmp_path, max_steps=2), progress=quiet())
    assert final_state(run)["weights"][name] == 1.0
    moving = config(tmp_path, run_dir=str(tmp_path / "b"), optimiser={"train_layer_scalars": True})
    train(moving, progress=quiet())
    assert final_state(moving)["weights"][name] != 1.0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_a_checkpoint(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config(tmp_path, max_steps=50, checkpoint_every=100)
    plain = Trainer.train_step

    def interrupted(self: Trainer) -> Any:
        if self.step == 3:
            signal.raise_signal(number)
        return plain(self)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    before = signal.getsignal(number)
    outcome = train(run, progress=quiet())
    assert (outcome.ended, outcome.step) == ("stopped", 4)
    assert final_state(run)["step"] == 4
    assert signal.getsignal(number) is before


def test_the_clock_only_stops(tmp_path: Path) -> None:
    run = config(tmp_path, max_steps=100_000, max_minutes=1e-6)
    outcome = train(run, progress=quiet())
    assert outcome.ended == "out of time"
    assert 0 < outcome.step < 100
    assert outcome.export is not None


def test_a_loss_that_is_not_finite_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config(tmp_path, checkpoint_every=100)
    plain = Trainer.train_step

    def spoiled(self: Trainer) -> Any:
        if self.step == 2:
            self.net.model.decoder.norm.weight.data.fill_(float("nan"))
        return plain(self)

    monkeypatch.setattr(Trainer, "train_step", spoiled)
    with pytest.raises(TrainingError, match=r"loss of family 0\.examples is nan at step 3"):
        train(run, progress=quiet())
    assert not RunDir(run.run_dir).states()


def test_starting_over_a_run_and_resuming_nothing_are_refused(tmp_path: Path) -> None:
    run = config(tmp_path, max_steps=1)
    with pytest.raises(TrainingError, match="no checkpoint to resume from"):
        train(run, resume=True, progress=quiet())
    train(run, progress=quiet())
    with pytest.raises(TrainingError, match="holds a run already"):
        train(run, progress=quiet())


def test_what_may_change_on_resume(tmp_path: Path) -> None:
    train(config(tmp_path, max_steps=2), progress=quiet())
    longer = config(tmp_path, max_steps=4)
    assert train(longer, resume=True, progress=quiet()).step == 4
    assert log(longer, "resume")[0]["changed"] == {"max_steps": 4}
    with pytest.raises(TrainingError, match="begun with another seed"):
        train(config(tmp_path, seed=9), resume=True, progress=quiet())
    model = recipe(tmp_path)["model"] | {"num_experts": 2}
    with pytest.raises(TrainingError, match="begun with another model"):
        train(config(tmp_path, model=model), resume=True, progress=quiet())


def test_damaged_checkpoints_are_named(tmp_path: Path) -> None:
    run = config(tmp_path, max_steps=2)
    train(run, progress=quiet())
    path = RunDir(run.run_dir).states()[-1]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TrainingError, match=r"state-000000002\.pt: is no checkpoint"):
        train(run, resume=True, progress=quiet())


def test_two_checkpoints_are_kept_and_leftovers_cleared(tmp_path: Path) -> None:
    folder = RunDir(tmp_path / "run")
    folder.create()
    for step in (1, 2, 10):
        folder.save(step, {"step": step})
    assert [path.name for path in folder.states()] == ["state-000000002.pt", "state-000000010.pt"]
    left = folder.path / ".state-000000011.pt.x.part"
    left.write_text("half")
    folder.create()
    assert not left.exists()
    assert folder.newest()["step"] == 10


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with written_aside(tmp_path / "file") as file:
            file.write(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match="checkpoint of step 2: No space left on device"):
        train(config(tmp_path), progress=quiet())
    assert not RunDir(config(tmp_path).run_dir).states()


def test_a_run_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot be made"):
        train(config(tmp_path, run_dir=str(tmp_path / "file" / "run")), progress=quiet())


def test_a_torn_last_line_of_the_log_is_dropped(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    for step in (1, 2, 3):
        folder.append({"step": step})
    with folder.log_path.open("a") as file:
        file.write('{"step": 1, "ha')
    folder.rewind_log(2)
    assert folder.log_path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_held_out_tasks_are_decoded_now_and_then(tmp_path: Path) -> None:
    evaluation = {"tasks": ["numbers"], "examples": 3, "batch": 2, "max_denoising_steps": 2}
    run = config(tmp_path, max_steps=4, eval_every=2, evaluation=evaluation)
    stream = io.StringIO()
    train(run, progress=Progress(stream))
    records = log(run, "eval")
    assert [record["step"] for record in records] == [2, 4]
    assert records[0]["numbers"] == {"accuracy": 0.0, "steps": 2.0}
    assert "held out at step 2: numbers 0.0% (2.0 steps)" in stream.getvalue()


def test_progress_renews_one_line_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    progress = Progress(stream)
    progress.step("one")
    progress.step("two")
    progress.say("done")
    assert stream.getvalue() == "\r\x1b[2Kone\r\x1b[2Ktwo\ndone\n"
    assert clock(3723) == "1:02:03"
    assert clock(63.9) == "1:03"


def test_the_meter_averages_losses_over_the_steps_that_have_them() -> None:
    meter = Meter()
    meter.add({"a": 1.0}, 4, 100)
    meter.add({"a": 3.0, "b": 5.0}, 4, 100)
    losses, rates = meter.read()
    assert losses == {"a": 2.0, "b": 5.0}
    assert rates["tokens_a_second"] == pytest.approx(25 * rates["canvases_a_second"])
    assert meter.steps == 0


def test_handlers_come_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    got: list[int] = []
    with handled((signal.SIGTERM,), got.append):
        signal.raise_signal(signal.SIGTERM)
    assert got == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_entry_point(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(toml(recipe(tmp_path, max_steps=1)))
    assert main([str(path)]) == 0
    assert "finished at step 1" in capsys.readouterr().err
    assert main([str(path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("sfumato: ")
    assert "--resume" in error
    assert main([str(tmp_path / "none.toml")]) == 1

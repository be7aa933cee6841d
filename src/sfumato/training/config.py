"""A training run as one frozen value, read from TOML; mistakes in it are named errors."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfumato.config.fields import Fields, short
from sfumato.config.model import LayerConfig, ModelConfig, RopeConfig, TextConfig
from sfumato.errors import ConfigError, InputError
from sfumato.tasks.registry import task

PRECISIONS = ("bfloat16", "float32")
MOST_TOKENS = 1 << 20
MOST_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The network to train from scratch. `pattern` has a letter a layer: S sliding, F full."""

    pattern: str
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    head_dim: int
    num_key_value_heads: int
    global_head_dim: int
    global_num_key_value_heads: int
    sliding_window: int
    num_experts: int
    top_k_experts: int
    moe_intermediate_size: int
    vocab_size: int
    canvas_length: int
    rope_theta: float = 1e4
    global_rope_theta: float = 1e6
    global_partial_rotary_factor: float = 0.25
    max_position_embeddings: int = 4096
    pad_token_id: int = 0
    eos_token_id: int = 1
    bos_token_id: int = 2

    def build(self) -> ModelConfig:
        """The checkpoint's configuration. Raises ConfigError for shapes that cannot be."""
        if not self.pattern or set(self.pattern) - set("SF") or self.pattern[-1] != "F":
            raise ConfigError(
                f"model.pattern is {short(self.pattern)}",
                hint="one letter a layer, S for sliding and F for full, the last an F",
            )
        sliding = LayerConfig("sliding_attention", self.head_dim, self.num_key_value_heads)
        full = LayerConfig("full_attention", self.global_head_dim, self.global_num_key_value_heads)
        text = TextConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_attention_heads=self.num_attention_heads,
            layers=tuple(sliding if letter == "S" else full for letter in self.pattern),
            sliding_window=self.sliding_window,
            num_experts=self.num_experts,
            top_k_experts=self.top_k_experts,
            moe_intermediate_size=self.moe_intermediate_size,
            rope_sliding=RopeConfig(self.rope_theta),
            rope_full=RopeConfig(
                self.global_rope_theta, self.global_partial_rotary_factor, "proportional"
            ),
            max_position_embeddings=self.max_position_embeddings,
            pad_token_id=self.pad_token_id,
            bos_token_id=self.bos_token_id,
            eos_token_id=(self.eos_token_id,),
        )
        return ModelConfig(
            text=text,
            canvas_length=self.canvas_length,
            image_token_id=None,
            boi_token_id=None,
            eoi_token_id=None,
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where text becomes ids, and the Sudoku grids. `tokenizer` "" is the small model's folder."""

    tokenizer: str = ""
    sudoku_grids: int = 8000
    sudoku_bank: str = ""  # a .npy file; "" keeps it in the run's folder
    sudoku_ramp: float = 0.35  # share of the run in which the puzzles grow to their hardest
    sudoku_hard: float = 0.6  # share of puzzles from the upper part of the range after that
    text_weights: tuple[tuple[str, float], ...] = ()  # empty: the mixture's own


@dataclass(frozen=True, kw_only=True)
class FamilyConfig:
    """One micro-batch of every step: `rows` prompts with `canvases` noisy canvases each.

    `source` is "sudoku", "sudoku:LOW-HIGH" (so many holes throughout), "text", the name of one
    text task or a .jsonl file of {"prompt", "answer"}. Prompts take at most
    `prompt_width`, prompt and clean answer together `stream_width`; canvases are cut to
    `canvas_width`. Compiled, all are padded to that, so that a step is compiled once. Examples that
    do not fit are refused, or with `fitting_only` passed over: of `candidates` for each row the
    first that fit are taken. With `leftover` those that an earlier family of the source would take
    are passed over too.
    """

    source: str
    rows: int
    prompt_width: int
    stream_width: int
    canvas_width: int
    canvases: int = 1
    weight: float = 1.0
    fitting_only: bool = False
    leftover: bool = False
    candidates: int = 4
    encoder_weight: float = 1.0  # 1.0: as published
    encoder_probability: float = 1.0  # share of the steps that carry the encoder's loss
    encoder_on: str = "all"  # or "answer": no loss on the prompt's own tokens


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """Corruption and what is supervised; the defaults are Google's column of training.md."""

    t_min: float = 1e-4
    t_max: float = 1 - 1e-4
    power: float = 1.0
    stratified: bool = False
    supervised: str = "all"  # or "corrupted"
    weight: str = "flat"  # or "1/t"


@dataclass(frozen=True, kw_only=True)
class ConditioningConfig:
    """The pass without gradient whose logits a share of the canvases get to see.

    `rollout_steps` > 0 replaces that one pass by 1..rollout_steps denoising steps, after which the
    canvas is the decoder's own (practice on its own mistakes).
    """

    probability: float = 0.5
    t_min: float = 0.4
    t_max: float = 0.8
    rollout_steps: int = 0
    rollout_probability: float = 1.0  # share of the steps that roll out, when rollout_steps > 0
    entropy_bound: float = 0.1


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """Muon for the matrices inside the layers, AdamW for all else, and their schedule."""

    muon_lr: float = 5e-3
    adam_lr: float = 2e-3
    momentum: float = 0.95
    newton_schulz_steps: int = 5
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip: float = 1.0
    schedule: str = "wsd"  # or "cosine"
    warmup_steps: int = 100
    decay_share: float = 0.25  # wsd: the last share of the run, in which the rate falls
    final_lr_share: float = 0.0
    ema_decay: float = 0.999  # 0 for none
    train_layer_scalars: bool = False


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Held-out tasks decoded now and then with the averaged weights."""

    tasks: tuple[str, ...] = ()
    examples: int = 32
    max_denoising_steps: int = 32
    entropy_bound: float = 0.1
    batch: int = 32


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run. Everything random follows from `seed` and the number of the step."""

    run_dir: str
    max_steps: int
    model: ModelShape
    families: tuple[FamilyConfig, ...]
    seed: int = 1
    max_minutes: float = 0.0  # 0: no limit; the limit stops the run, the schedule knows only steps
    threads: int = 0  # 0: torch's own choice
    workers: int = 1  # families computed side by side, each on its share of the threads
    precision: str = "bfloat16"
    experts: str = "dense"  # or "grouped": only the chosen ones, sorted
    init_from: str = ""  # a checkpoint folder to start from; "": fresh weights from the seed
    compile: bool = True
    checkpoint_layers: bool = False
    log_every: int = 10
    eval_every: int = 0  # 0: never
    checkpoint_every: int = 100
    data: DataConfig = field(default_factory=DataConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    conditioning: ConditioningConfig = field(default_factory=ConditioningConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)


def load_train_config(path: str | Path) -> TrainConfig:
    """Read a recipe. Raises ConfigError naming the file, the key and what it should be."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path}: is no file", hint="give a recipe, a file in TOML")
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError(f"{path}: {path.stat().st_size:,} bytes are no recipe")
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise ConfigError(f"{path}: cannot be read: {problem.strerror or problem}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise ConfigError(f"{path}: is not TOML: {problem}") from None
    return parse_train_config(data, str(path))


def parse_train_config(data: dict[str, Any], source: str = "train config") -> TrainConfig:
    """The run that the tables `data` describe."""
    top = Fields(data, source)
    config = TrainConfig(
        run_dir=top.string("run_dir"),
        max_steps=top.integer("max_steps"),
        seed=top.integer("seed", 1, low=0),
        max_minutes=_number(top, "max_minutes", 0.0),
        threads=top.integer("threads", 0, low=0, high=4096),
        workers=top.integer("workers", 1, high=64),
        precision=_choice(top, "precision", PRECISIONS),
        experts=_choice(top, "experts", ("dense", "grouped")),
        init_from=top.string("init_from", ""),
        compile=top.boolean("compile", True),
        checkpoint_layers=top.boolean("checkpoint_layers", False),
        log_every=top.integer("log_every", 10),
        eval_every=top.integer("eval_every", 0, low=0),
        checkpoint_every=top.integer("checkpoint_every", 100),
        model=_model(top.child("model")),
        families=_families(top),
        data=_data(top.child("data", {})),
        noise=_noise(top.child("noise", {})),
        conditioning=_conditioning(top.child("conditioning", {})),
        optimiser=_optimiser(top.child("optimiser", {})),
        evaluation=_evaluation(top.child("evaluation", {})),
    )
    top.finish()
    if not config.run_dir.strip():
        raise top.error("run_dir", "is empty; name the folder that the run is kept in")
    if config.compile and config.workers > 1:
        raise top.error("workers", "must be 1 with compile = true: torch compiles in one thread")
    for index, family in enumerate(config.families):
        _check_family(top, index, family, config.model)
        _check_leftover(top, index, config.families)
    return config


def _model(table: Fields) -> ModelShape:
    sizes = {
        name: table.integer(name, high=MOST_TOKENS)
        for name, kind in ModelShape.__annotations__.items()
        if kind == "int" and not hasattr(ModelShape, name)
    }
    shape = ModelShape(
        pattern=table.string("pattern"),
        **sizes,
        rope_theta=table.number("rope_theta", 1e4),
        global_rope_theta=table.number("global_rope_theta", 1e6),
        global_partial_rotary_factor=table.number("global_partial_rotary_factor", 0.25, most=1.0),
        max_position_embeddings=table.integer("max_position_embeddings", 4096),
        pad_token_id=table.integer("pad_token_id", 0, low=0),
        eos_token_id=table.integer("eos_token_id", 1, low=0),
        bos_token_id=table.integer("bos_token_id", 2, low=0),
    )
    table.finish()
    shape.build()
    return shape


def _data(table: Fields) -> DataConfig:
    weights = table.take("text_weights", {})
    if not isinstance(weights, dict):
        raise table.error("text_weights", "must be a table of task names and weights")
    inner = Fields(weights, table.source, table.path("text_weights"))
    default = DataConfig()
    config = DataConfig(
        tokenizer=table.string("tokenizer", default.tokenizer),
        sudoku_grids=table.integer("sudoku_grids", default.sudoku_grids, high=10_000_000),
        sudoku_bank=table.string("sudoku_bank", default.sudoku_bank),
        sudoku_ramp=_number(table, "sudoku_ramp", default.sudoku_ramp, most=1.0),
        sudoku_hard=_number(table, "sudoku_hard", default.sudoku_hard, most=1.0),
        text_weights=tuple((name, _number(inner, name, 0.0)) for name in weights),
    )
    table.finish()
    return config


def _families(top: Fields) -> tuple[FamilyConfig, ...]:
    tables = top.take("family")
    if not isinstance(tables, list) or not tables:
        raise top.error("family", "must be one or more [[family]] tables")
    return tuple(
        _family(Fields(table, top.source, f"family[{index}]")) for index, table in enumerate(tables)
    )


def _family(table: Fields) -> FamilyConfig:
    config = FamilyConfig(
        source=table.string("source"),
        rows=table.integer("rows", high=MOST_TOKENS),
        prompt_width=table.integer("prompt_width", high=MOST_TOKENS),
        stream_width=table.integer("stream_width", high=MOST_TOKENS),
        canvas_width=table.integer("canvas_width", high=MOST_TOKENS),
        canvases=table.integer("canvases", 1, high=4096),
        weight=table.number("weight", 1.0),
        fitting_only=table.boolean("fitting_only", False),
        leftover=table.boolean("leftover", False),
        candidates=table.integer("candidates", 4, high=4096),
        encoder_weight=_number(table, "encoder_weight", 1.0),
        encoder_probability=_number(table, "encoder_probability", 1.0, most=1.0),
        encoder_on=_choice(table, "encoder_on", ("all", "answer")),
    )
    table.finish()
    return config


def _check_family(top: Fields, index: int, family: FamilyConfig, model: ModelShape) -> None:
    def error(name: str, problem: str) -> ConfigError:
        return top.error(f"family[{index}].{name}", problem)

    if not (family.source == "text" or family.source.endswith(".jsonl")):
        try:
            task(family.source)
        except InputError as problem:
            what = f'is {short(family.source)}, not "text", a task or a .jsonl file'
            raise error("source", f"{what}: {problem}") from problem
    if family.canvas_width > model.canvas_length:
        raise error("canvas_width", f"is more than model.canvas_length, {model.canvas_length}")
    if family.stream_width < family.prompt_width:
        raise error("stream_width", "is less than prompt_width, which it includes")
    if family.stream_width + family.canvas_width > model.max_position_embeddings:
        raise error("stream_width", "leaves no room for a canvas in max_position_embeddings")


def _check_leftover(top: Fields, index: int, families: tuple[FamilyConfig, ...]) -> None:
    """Refuse a `leftover` that would do nothing, or leave nothing over."""
    family = families[index]
    if not family.leftover:
        return
    name = f"family[{index}].leftover"
    if not family.fitting_only:
        raise top.error(name, "needs fitting_only")
    earlier = [other for other in families[:index] if other.source == family.source]
    if not earlier:
        raise top.error(name, "is true, and no earlier family has the source " + family.source)
    widths = ("prompt_width", "stream_width", "canvas_width")
    for other in earlier:
        if all(getattr(other, width) >= getattr(family, width) for width in widths):
            raise top.error(name, "is true, and an earlier family of the source is as wide")


def _noise(table: Fields) -> NoiseConfig:
    default = NoiseConfig()
    config = NoiseConfig(
        t_min=_number(table, "t_min", default.t_min, most=1.0),
        t_max=table.number("t_max", default.t_max, most=1.0),
        power=table.number("power", default.power),
        stratified=table.boolean("stratified", default.stratified),
        supervised=_choice(table, "supervised", ("all", "corrupted")),
        weight=_choice(table, "weight", ("flat", "1/t")),
    )
    table.finish()
    if config.t_min > config.t_max:
        raise table.error("t_min", f"is above t_max, {config.t_max}")
    if config.weight == "1/t" and config.t_min <= 0:
        raise table.error("t_min", 'must be above 0 with weight = "1/t"')
    return config


def _conditioning(table: Fields) -> ConditioningConfig:
    default = ConditioningConfig()
    config = ConditioningConfig(
        probability=_number(table, "probability", default.probability, most=1.0),
        t_min=table.number("t_min", default.t_min),
        t_max=table.number("t_max", default.t_max),
        rollout_steps=table.integer("rollout_steps", 0, low=0, high=1000),
        rollout_probability=_number(table, "rollout_probability", 1.0, most=1.0),
        entropy_bound=table.number("entropy_bound", default.entropy_bound),
    )
    table.finish()
    if config.t_min > config.t_max:
        raise table.error("t_min", f"is above t_max, {config.t_max}")
    return config


def _optimiser(table: Fields) -> OptimiserConfig:
    default = OptimiserConfig()
    numbers = {
        name: _number(table, name, getattr(default, name))
        for name in ("muon_lr", "adam_lr", "eps", "weight_decay", "clip")
    }
    shares = {
        name: _number(table, name, getattr(default, name), most=1.0)
        for name in ("momentum", "beta1", "beta2", "decay_share", "final_lr_share", "ema_decay")
    }
    for name in ("momentum", "beta1", "beta2", "ema_decay"):
        if shares[name] >= 1.0:
            raise table.error(name, "must be below 1")
    config = OptimiserConfig(
        **numbers,
        **shares,
        newton_schulz_steps=table.integer("newton_schulz_steps", 5, high=100),
        schedule=_choice(table, "schedule", ("wsd", "cosine")),
        warmup_steps=table.integer("warmup_steps", default.warmup_steps, low=0),
        train_layer_scalars=table.boolean("train_layer_scalars", False),
    )
    table.finish()
    return config


def _evaluation(table: Fields) -> EvalConfig:
    default = EvalConfig()
    tasks = table.take("tasks", [])
    if not isinstance(tasks, list) or not all(isinstance(name, str) for name in tasks):
        raise table.error("tasks", "must be a list of task names")
    config = EvalConfig(
        tasks=tuple(tasks),
        examples=table.integer("examples", default.examples),
        max_denoising_steps=table.integer("max_denoising_steps", default.max_denoising_steps),
        entropy_bound=table.number("entropy_bound", default.entropy_bound),
        batch=table.integer("batch", default.batch),
    )
    table.finish()
    return config


def _number(table: Fields, name: str, default: float, *, most: float = 1e12) -> float:
    """A number from 0 (included) to `most`."""
    value = table.take(name, default)
    if value == 0 and not isinstance(value, bool):
        return 0.0
    return Fields({name: value}, table.source, table.where).number(name, most=most)


def _choice(table: Fields, name: str, options: tuple[str, ...]) -> str:
    """One of `options`, the first by default."""
    value = table.string(name, options[0])
    if value not in options:
        raise table.error(name, f"is {short(value)}, not one of {', '.join(options)}")
    return value

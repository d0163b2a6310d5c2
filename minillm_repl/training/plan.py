"""What `:train` can be told."""

import re
from dataclasses import dataclass

from minillm_repl.language import _
from minillm_repl.settings import (
    file_or,
    integer,
    number,
    one_of,
    setting,
    switch,
)

_AUTO = {"auto": 0}
_SWITCH = {"on": True, "off": False}
_TOKENIZER = re.compile(r"char(:\d{1,7})?|bpe:\d{1,7}")


def _tokenizer(text: str) -> str:
    if not _TOKENIZER.fullmatch(text):
        raise ValueError(_("char, char:N or bpe:N"))
    return text


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """How to train.

    What is left at auto is chosen for the model, the text and the machine, and told.
    """

    steps: int = setting(0, integer(1), "optimizer steps", unit="steps", special_values=_AUTO)
    epochs: float = setting(
        0.0,
        number(0, 1e6, above=True),
        "passes over the training text, in place of steps",
        metavar="X",
        aliases=("passes",),
        special_values={"auto": 0.0},
    )
    lr: float = setting(
        0.0,
        number(0, 10, above=True),
        "learning rate (peak)",
        metavar="X",
        aliases=("learning-rate",),
        special_values={"auto": 0.0},
    )
    batch_size: int = setting(
        0,
        integer(1, 65_536),
        "batch size (sequences per step, all processes)",
        unit="sequences",
        aliases=("batch",),
        special_values=_AUTO,
    )
    grad_accum_steps: int = setting(
        1,
        integer(1, 65_536),
        "gradient accumulation: micro-batches per step, processed in sequence to save memory",
        unit="micro-batches",
        aliases=("accumulate",),
    )
    seed: int = setting(
        0, integer(0, 2**63 - 1), "random seed for new weights and the order of the text"
    )
    context_length: int = setting(
        0,
        integer(1, 1_000_000),
        "sequence length; context length of a new model",
        unit="tokens",
        aliases=("context", "block-size"),
        special_values=_AUTO,
    )

    # the text
    val: str = setting(
        "auto",
        file_or("off", "auto"),
        "validation text: a FILE, off, or auto (the last 10% if the text is long enough)",
        metavar="FILE",
    )
    documents: str = setting(
        "auto",
        one_of("auto", "lines", "blank-lines", "files", "whole"),
        "document boundaries in text files: auto (each line of a list, else two blank lines), "
        "lines, blank-lines, files (each file is one), whole (nowhere)",
        metavar="HOW",
    )
    sample_prompt: str = setting(
        "",
        str,
        "prompt of the samples during training; empty: the start of the text",
        metavar="TEXT",
        aliases=("sample",),
    )

    # a new model
    preset: str = setting(
        "auto",
        one_of("auto", "note", "small", "medium"),
        "size preset of a new model: note, small, medium",
        metavar="NAME",
    )
    arch: str = setting(
        "auto",
        one_of("auto", "gpt", "llama", "canon"),
        "architecture of a new model: gpt (as in the study note), llama, or canon (a llama that "
        "learns faster; other programs do not know it)",
        metavar="KIND",
    )
    tokenizer: str = setting(
        "char",
        _tokenizer,
        "tokenizer of a new model: char (each character), char:N (the N most frequent, and bytes "
        "for the others), bpe:N (byte-pair encoding)",
        metavar="KIND",
    )
    d_model: int = setting(
        0,
        integer(1, 65_536),
        "embedding width, d_model (new model)",
        aliases=("width", "n-embd", "n-embed", "hidden-size"),
        special_values=_AUTO,
    )
    n_layers: int = setting(
        0,
        integer(1, 1_000),
        "number of layers (new model)",
        aliases=("layers", "n-layer"),
        special_values=_AUTO,
    )
    n_heads: int = setting(
        0,
        integer(1, 1_024),
        "attention heads per layer (new model)",
        aliases=("heads", "n-head"),
        special_values=_AUTO,
    )
    n_kv_heads: int = setting(
        0,
        integer(1, 1_024),
        "KV heads per layer, each shared by several query heads (new llama or canon)",
        special_values=_AUTO,
        aliases=("kv-heads",),
    )
    lora_rank: int = setting(
        0,
        integer(0, 4_096),
        "LoRA rank: train two low-rank matrices beside each matrix and freeze the rest",
        special_values={"off": 0},
        aliases=("lora",),
    )

    # the loop
    optimizer: str = setting(
        "normuon",
        one_of("normuon", "muon", "adamw"),
        "normuon or muon: that for the matrices and AdamW for the rest; adamw: AdamW for all",
        metavar="KIND",
    )
    schedule: str = setting(
        "linear",
        one_of("linear", "cosine", "constant"),
        "learning rate schedule: linear (constant, then down over the second half), "
        "cosine, constant",
        metavar="HOW",
    )
    warmup_steps: int = setting(
        -1,
        integer(0),
        "warm-up steps until the full learning rate",
        unit="steps",
        special_values={"auto": -1},
        aliases=("warm-up",),
    )
    weight_decay: float = setting(
        -1.0,
        number(0, 10),
        "weight decay, applied to the matrices",
        metavar="X",
        special_values={"auto": -1.0},
    )
    grad_clip: float = setting(
        1.0,
        number(0, 1e6),
        "clip the global gradient norm to this",
        metavar="X",
        special_values={"off": 0.0},
        aliases=("clip",),
    )
    dropout: float = setting(
        0.0,
        number(0, 0.9),
        "dropout: fraction of activations zeroed at random during training",
        metavar="X",
        special_values={"off": 0.0},
    )
    label_smoothing: float = setting(
        0.0,
        number(0, 0.9),
        "label smoothing: fraction of the target spread evenly over all tokens",
        metavar="X",
        special_values={"off": 0.0},
    )
    precision: str = setting(
        "auto",
        one_of("auto", "float32", "bfloat16"),
        "matmul precision: auto measures which is faster",
        metavar="KIND",
    )
    grad_checkpointing: str = setting(
        "auto",
        one_of("auto", "on", "off"),
        "gradient checkpointing, less memory for a third more work: on, off, or auto (where "
        "the memory is too small without)",
        metavar="HOW",
        aliases=("gradient-checkpointing",),
    )
    compile: bool = setting(
        False,
        switch,
        "compile the model with torch first: on or off; slow to start, needs a compiler",
        special_values=_SWITCH,
    )
    shard: bool = setting(
        False,
        switch,
        "shard the weights across processes: on or off",
        special_values=_SWITCH,
    )
    patience: int = setting(
        0,
        integer(0),
        "early stopping: stop after this many evaluations without improvement",
        unit="evaluations",
        special_values={"off": 0},
    )
    eval_interval: int = setting(
        0,
        integer(1),
        "steps between evaluations; each one measures the loss and writes a sample",
        unit="steps",
        special_values=_AUTO,
        aliases=("every",),
    )
    log: str = setting(
        "off",
        one_of("off", "csv", "tensorboard", "trackio"),
        "write the losses of each step beside the checkpoint: csv, tensorboard or trackio",
        metavar="KIND",
    )
    save_steps: int = setting(
        0,
        integer(0),
        "steps between saves",
        unit="steps",
        special_values={"off": 0},
    )
    save_minutes: float = setting(
        5.0,
        number(0, 1e6),
        "minutes between saves",
        unit="minutes",
        special_values={"off": 0.0},
    )

"""What `:train` can be told."""

import re
from dataclasses import dataclass

from minillm_repl.language import _
from minillm_repl.settings import not_empty, number, one_of, setting, switch, whole

_AUTO = {"auto": 0}
_SWITCH = {"on": True, "off": False}
_TOKENIZER = re.compile(r"char(:\d{1,7})?|bpe:\d{1,7}")


def _tokenizer(text: str) -> str:
    if not _TOKENIZER.fullmatch(text):
        raise ValueError(_("char, char:N or bpe:N"))
    return text


@dataclass(frozen=True)
class TrainPlan:
    """How to train.

    What is left at auto is chosen for the model, the text and the machine, and told.
    """

    steps: int = setting(
        0, whole(1), "how often the weights are adjusted", unit="steps", words=_AUTO
    )
    lr: float = setting(
        0.0,
        number(0, 10, above=True),
        "learning rate: how far each step goes",
        metavar="X",
        aliases=("learning-rate",),
        words={"auto": 0.0},
    )
    batch: int = setting(
        0,
        whole(1, 65_536),
        "pieces of text read for each step, by all processes together",
        unit="pieces",
        aliases=("batch-size",),
        words=_AUTO,
    )
    accumulate: int = setting(
        1,
        whole(1, 65_536),
        "parts in which a batch is read, one after the other, to need less memory",
        unit="parts",
    )
    seed: int = setting(0, whole(0, 2**63 - 1), "fixes fresh weights and the order of the text")
    context: int = setting(
        0,
        whole(1, 1_000_000),
        "tokens in a piece of text; a new model sees as many at once",
        unit="tokens",
        aliases=("block-size",),
        words=_AUTO,
    )

    # the text
    val: str = setting(
        "auto",
        not_empty("off", "auto"),
        "text held out to measure on: a FILE, off, or auto for the last tenth where the text "
        "is long enough",
        metavar="FILE",
    )
    documents: str = setting(
        "auto",
        one_of("auto", "blank-lines", "whole"),
        "where one document ends and another begins in a text file: auto (two or more blank "
        "lines), blank-lines, whole",
        metavar="HOW",
    )
    sample: str = setting(
        "",
        str,
        "what the samples on the way begin with; empty: the start of the text",
        metavar="TEXT",
    )

    # a new model
    preset: str = setting(
        "auto",
        one_of("auto", "note", "small", "medium"),
        "sizes of a new model: note, small, medium",
        metavar="NAME",
    )
    arch: str = setting(
        "auto",
        one_of("auto", "gpt", "llama"),
        "kind of a new model: gpt (the study note's) or llama",
        metavar="KIND",
    )
    tokenizer: str = setting(
        "char",
        _tokenizer,
        "tokens of a new model: char (each character), char:N (the N most frequent), bpe:N "
        "(byte pairs)",
        metavar="KIND",
    )
    width: int = setting(
        0, whole(1, 65_536), "numbers per token (new model)", aliases=("n-embed",), words=_AUTO
    )
    layers: int = setting(
        0,
        whole(1, 1_000),
        "blocks on top of each other (new model)",
        aliases=("n-layer",),
        words=_AUTO,
    )
    heads: int = setting(
        0, whole(1, 1_024), "points of view per block (new model)", aliases=("n-head",), words=_AUTO
    )
    kv_heads: int = setting(
        0,
        whole(1, 1_024),
        "keys and values per block, each shared by several heads (new llama)",
        words=_AUTO,
    )
    lora: int = setting(
        0,
        whole(0, 4_096),
        "train two thin matrices of this rank beside each matrix (LoRA), and leave the rest "
        "as it is",
        words={"off": 0},
    )

    # the loop
    optimizer: str = setting(
        "muon",
        one_of("muon", "adamw"),
        "muon for the matrices and adamw for the rest, or adamw for all",
        metavar="KIND",
    )
    schedule: str = setting(
        "linear",
        one_of("linear", "cosine", "constant"),
        "how the learning rate ends: linear (level, then down over the second half), cosine, "
        "constant",
        metavar="HOW",
    )
    warm_up: int = setting(
        -1, whole(0), "steps until the learning rate is whole", unit="steps", words={"auto": -1}
    )
    weight_decay: float = setting(
        -1.0,
        number(0, 10),
        "how strongly the matrices are pulled to zero",
        metavar="X",
        words={"auto": -1.0},
    )
    clip: float = setting(
        1.0,
        number(0, 1e6),
        "gradients longer than this are shortened to it",
        metavar="X",
        words={"off": 0.0},
    )
    dropout: float = setting(
        0.0,
        number(0, 0.9),
        "share of numbers left out at random while training",
        metavar="X",
        words={"off": 0.0},
    )
    label_smoothing: float = setting(
        0.0,
        number(0, 0.9),
        "share of the target given to all tokens alike",
        metavar="X",
        words={"off": 0.0},
    )
    precision: str = setting(
        "auto",
        one_of("auto", "float32", "bfloat16"),
        "numbers that the products are computed in: auto measures which is faster",
        metavar="KIND",
    )
    compile: bool = setting(
        False,
        switch,
        "let torch compile the model first: on or off; slow to start, needs a compiler",
        words=_SWITCH,
    )
    shard: bool = setting(
        False,
        switch,
        "let each of several processes hold only its share of the weights: on or off",
        words=_SWITCH,
    )
    patience: int = setting(
        0,
        whole(0),
        "stop when this many measurements in a row have not improved on the best",
        unit="measurements",
        words={"off": 0},
    )
    every: int = setting(
        0, whole(1), "steps from one measurement and sample to the next", unit="steps", words=_AUTO
    )
    save_steps: int = setting(
        0, whole(0), "save each time so many steps are done", unit="steps", words={"off": 0}
    )
    save_minutes: float = setting(
        5.0,
        number(0, 1e6),
        "save each time so many minutes have passed",
        unit="minutes",
        words={"off": 0.0},
    )


NEW_MODEL = ("preset", "arch", "tokenizer", "width", "layers", "heads", "kv_heads")
"""What counts for a new model alone."""

"""What `:train` can be told."""

from dataclasses import dataclass

from minillm_repl.settings import number, setting, whole


@dataclass(frozen=True)
class TrainPlan:
    """How to train. Width, layers and heads count only for a new model."""

    steps: int = setting(500, whole(1), "how often the weights are adjusted", unit="steps")
    lr: float = setting(
        0.006, number(1e-8, 10), "learning rate: how far each step goes", metavar="X", aliases=("learning-rate",)
    )
    batch: int = setting(
        16, whole(1, 65_536), "pieces of text read for each step", unit="pieces", aliases=("batch-size",)
    )
    seed: int = setting(0, whole(0, 2**63 - 1), "fixes fresh weights and the order of the text")
    context: int = setting(
        0,
        whole(0, 1_000_000),
        "tokens in a piece of text; a new model sees as many at once",
        unit="tokens",
        aliases=("block-size",),
        words={"auto": 0},
    )
    width: int = setting(64, whole(1, 65_536), "numbers per token (new model)", aliases=("n-embed",))
    layers: int = setting(4, whole(1, 1_000), "blocks on top of each other (new model)", aliases=("n-layer",))
    heads: int = setting(4, whole(1, 1_024), "points of view per block (new model)", aliases=("n-head",))


SIZES = ("width", "layers", "heads")

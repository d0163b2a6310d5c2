"""What the places to look in cost when nobody looks: the model as it is beside the same source
without its taps.
"""

import ast
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

from benchmarks.generation import PROMPT, SHORT, tokens_per_second
from benchmarks.measure import Bench, Row, Target, alternate

if TYPE_CHECKING:
    from minillm_repl.model.build import LanguageModel


def rows(bench: Bench) -> list[Row]:
    """Measure the torch decoder with and without taps, none of which is on."""
    import torch

    from minillm_repl.checkpoint.load import load
    from minillm_repl.generate.backends.torch import TorchDecoder
    from minillm_repl.model import gpt
    from minillm_repl.model.build import build
    from minillm_repl.storage.paths import find_checkpoint

    checkpoint = load(find_checkpoint("nalssi"))
    ids = checkpoint.tokenizer.encode(PROMPT)
    model = build(checkpoint.config, checkpoint.tensors)
    bare: LanguageModel = _without_taps(gpt).GPT(checkpoint.config)
    bare.load_state_dict(model.state_dict())
    bare.requires_grad_(False)

    def generating(model: "LanguageModel") -> Callable[[], float]:
        decoder = TorchDecoder(model)
        return lambda: tokens_per_second(decoder, checkpoint.tokenizer, ids, SHORT)

    torch.set_num_threads(1)  # a model this small only waits for a second one
    took = alternate(4 * bench.runs, {"with": generating(model), "without": generating(bare)})
    name = f"taps: {SHORT} tokens, torch decoder, no tap on"
    return [
        Row(
            name,
            "tokens/s",
            took["with"],
            "the same source without taps",
            took["without"],
            Target("≥", 0.97),
        )
    ]


def _without_taps(module: ModuleType) -> ModuleType:
    """Return a module made of the same source, in which `tap(name, x)` is `x`."""

    class Bare(ast.NodeTransformer):
        def visit_Call(self, node: ast.Call) -> ast.AST:
            self.generic_visit(node)
            tapped = isinstance(node.func, ast.Name) and node.func.id == "tap"
            return node.args[1] if tapped else node

    tree = ast.fix_missing_locations(Bare().visit(ast.parse(inspect.getsource(module))))
    bare = ModuleType(module.__name__)
    exec(compile(tree, str(module.__file__), "exec"), bare.__dict__)  # noqa: S102 - our own source
    return bare

"""What the hook points cost while no hook is set: the model beside the same source without them."""

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
    """Measure the torch decoder with and without hook points, with no hook set."""
    import torch

    from minillm_repl.checkpoint.load_save import load
    from minillm_repl.generate.backends.torch import TorchDecoder
    from minillm_repl.model import gpt
    from minillm_repl.model.build import build
    from minillm_repl.storage.paths import find_checkpoint

    checkpoint = load(find_checkpoint("nalssi"))
    ids = checkpoint.tokenizer.encode(PROMPT)
    model = build(checkpoint.config, checkpoint.tensors)
    bare: LanguageModel = _without_hooks(gpt).GPT(checkpoint.config)
    bare.load_state_dict(model.state_dict())
    bare.requires_grad_(False)

    def generating(model: "LanguageModel") -> Callable[[], float]:
        decoder = TorchDecoder(model)
        return lambda: tokens_per_second(decoder, checkpoint.tokenizer, ids, SHORT)

    torch.set_num_threads(1)  # a model this small only waits for a second one
    took = alternate(4 * bench.runs, {"with": generating(model), "without": generating(bare)})
    name = f"hooks: {SHORT} tokens, torch decoder, no hook set"
    return [
        Row(
            name,
            "tokens/s",
            took["with"],
            "the same source without hooks",
            took["without"],
            Target("≥", 0.97),
        )
    ]


def _without_hooks(module: ModuleType) -> ModuleType:
    """Return a module made of the same source, in which `hook(name, x)` is `x`."""

    class Bare(ast.NodeTransformer):
        def visit_Call(self, node: ast.Call) -> ast.AST:
            self.generic_visit(node)
            is_hook = isinstance(node.func, ast.Name) and node.func.id == "hook"
            removed.append(is_hook)
            return node.args[1] if is_hook else node

    removed: list[bool] = []
    tree = ast.fix_missing_locations(Bare().visit(ast.parse(inspect.getsource(module))))
    if not any(removed):
        raise SystemExit(f"{module.__name__} calls no hook: there is nothing to compare")
    bare = ModuleType(module.__name__)
    exec(compile(tree, str(module.__file__), "exec"), bare.__dict__)  # noqa: S102 - our own source
    return bare

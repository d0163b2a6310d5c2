"""What a plan leaves open, chosen for the model, the text and the machine."""

from dataclasses import dataclass, replace

from minillm_repl.language import _
from minillm_repl.model.config import AnyConfig, GPTConfig, LlamaConfig
from minillm_repl.training.plan import TrainPlan


@dataclass(frozen=True)
class Preset:
    """The sizes of a new model, and how to train it."""

    arch: str
    width: int
    layers: int
    context: int
    batch: int
    steps: int
    tokens: int  # a text of at least so many is worth this size


# What was tried, and what it gave: docs/performance.md.
PRESETS = {
    "note": Preset("gpt", 64, 4, 32, 16, 150, 0),
    "small": Preset("llama", 128, 4, 128, 8, 1_000, 20_000),
    "medium": Preset("llama", 256, 6, 256, 32, 3_000, 3_000_000),
}
_FURTHER_CONTEXT, _FURTHER_TOKENS = 256, 2_048  # for each step of a model that is trained further
_MEASUREMENTS, _SELDOM = 10, 500  # in a run, and the most steps from one to the next


def pick_preset(plan: TrainPlan, tokens: int, accelerated: bool) -> tuple[str, str]:
    """Return the preset for a new model on a text of so many tokens, and a note that says why."""
    if plan.preset != "auto":
        return plan.preset, _("preset {name} as asked", name=plan.preset)
    fits = [name for name, preset in PRESETS.items() if tokens >= preset.tokens]
    if fits[-1] == "medium" and not accelerated:
        return "small", _(
            "preset {name} for {tokens:,} tokens, on a processor", name="small", tokens=tokens
        )
    return fits[-1], _("preset {name} for {tokens:,} tokens", name=fits[-1], tokens=tokens)


def settle_new(plan: TrainPlan, preset: str) -> TrainPlan:
    """Return a plan for a new model in which every size is given."""
    usual = PRESETS[preset]
    arch = usual.arch if plan.arch == "auto" else plan.arch
    width = plan.width or usual.width
    heads = plan.heads or _heads(arch, width)
    return replace(
        plan,
        preset=preset,
        arch=arch,
        width=width,
        layers=plan.layers or usual.layers,
        heads=heads,
        kv_heads=plan.kv_heads or (heads // 2 if heads % 2 == 0 else heads),
        context=plan.context or usual.context,
        batch=plan.batch or usual.batch,
        steps=plan.steps or usual.steps,
        lr=plan.lr or (0.006 if arch == "gpt" else 0.01 * min(1.0, 128 / width) ** 0.5),
    )


def settle_further(plan: TrainPlan, config: AnyConfig, tokens: int) -> TrainPlan:
    """Return a plan for training a model further in which every size is given: by default about
    one pass.
    """
    # a longer one costs memory and time at each step
    context = min(config.context, plan.context or _FURTHER_CONTEXT)
    batch = plan.batch or max(1, _FURTHER_TOKENS // context)
    steps = plan.steps or min(1_000, max(100, tokens // (batch * context)))
    lr = (0.02 if plan.lora else 0.003) * min(1.0, 64 / config.width) ** 0.5
    return replace(plan, context=context, batch=batch, steps=steps, lr=plan.lr or lr)


def settle_loop(plan: TrainPlan) -> TrainPlan:
    """Return a plan with the numbers of its loop given."""
    return replace(
        plan,
        warm_up=min(20, max(1, plan.steps // 5)) if plan.warm_up < 0 else plan.warm_up,
        weight_decay=0.1 if plan.weight_decay < 0 else plan.weight_decay,
        every=plan.every or min(_SELDOM, max(1, plan.steps // _MEASUREMENTS)),
    )


def least_memory(plan: TrainPlan, config: AnyConfig) -> int:
    """Return how many bytes a settled plan needs for sure: weights, gradients and moments, and
    what a step computes.
    """
    tokens = -(-plan.batch // plan.accumulate) * plan.context
    weights = config.parameters * (2 if plan.lora else 5)  # with LoRA little more is trained
    return 4 * (weights + tokens * (2 * config.vocab + 8 * config.layers * config.width))


def new_config(plan: TrainPlan, vocab: int) -> AnyConfig:
    """Return the config of a new model of a settled plan.

    Raises UserError for sizes that do not go together.
    """
    if plan.arch == "gpt":
        return GPTConfig(vocab, plan.context, plan.width, plan.layers, plan.heads)
    return LlamaConfig(
        vocab,
        plan.context,
        plan.width,
        plan.layers,
        plan.heads,
        kv_heads=plan.kv_heads,
        head_size=max(2, plan.width // plan.heads),
        # a third less than four times the width: the gate is a third matrix
        hidden=-(-plan.width // 3) * 8,
        qk_norm=True,
    )


def _heads(arch: str, width: int) -> int:
    size = 16 if arch == "gpt" and width <= 64 else 32 if width < 512 else 64
    return max(1, width // size)

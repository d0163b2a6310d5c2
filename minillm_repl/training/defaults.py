"""What a plan leaves open, chosen for the model, the text and the machine; and a new model."""

import math
from dataclasses import dataclass, replace

import torch

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config import AnyConfig, CanonConfig, GPTConfig, LlamaConfig
from minillm_repl.storage.files import available_bytes, check_memory
from minillm_repl.training.plan import TrainPlan


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The sizes of a new model, and how to train it."""

    arch: str
    d_model: int
    n_layers: int
    context_length: int
    batch_size: int
    steps: int
    min_tokens: int  # the shortest text that is worth this size


# What was tried, and what it gave: docs/performance.md.
PRESETS = {
    "note": Preset(
        arch="gpt",
        d_model=64,
        n_layers=4,
        context_length=32,
        batch_size=16,
        steps=150,
        min_tokens=0,
    ),
    "small": Preset(
        arch="canon",
        d_model=128,
        n_layers=4,
        context_length=128,
        batch_size=8,
        steps=1_000,
        min_tokens=20_000,
    ),
    "medium": Preset(
        arch="canon",
        d_model=256,
        n_layers=6,
        context_length=256,
        batch_size=32,
        steps=3_000,
        min_tokens=3_000_000,
    ),
}
_FINETUNE_CONTEXT = 256  # tokens; a longer context costs memory and time at each step
_FINETUNE_BATCH_TOKENS = 2_048  # tokens a step
_MEMORY_FACTOR = 1.25  # of what can be counted, for what the libraries take for a moment
_MIN_EVALS, _MAX_EVALS = 4, 10  # evaluations in a run: fewer where their sample would be smaller
_MIN_EVAL_TOKENS = 1_024  # than this,
_MAX_EVAL_INTERVAL = 500  # but never more steps than this from one to the next
_MAX_EVAL_SHARE = 1 / 8  # of the work of training: what all evaluations of a run cost together
# A step costs as much as a forward pass over this many times its tokens (measured: 3.7, LoRA 3.0).
# Forward is one, backward two, of frozen weights one; the optimiser and small batches add a fifth.
OPTIMISER_FACTOR = 1.2
_STEP_COST, _LORA_STEP_COST = 3, 2


def choose_sizes(
    config: AnyConfig | None,
    plan: TrainPlan,
    *,
    n_tokens: int,
    vocab_size: int,
    has_accelerator: bool,
) -> tuple[AnyConfig, TrainPlan, str]:
    """Return the config of the model that learns, the plan with its sizes given, and a note on
    the preset of a new model.

    `config` is that of a model that is trained further; None: a new model. Raises UserError for
    sizes that do not go together.
    """
    if config:
        return config, resolve_finetuning(plan, config), ""
    preset, note = pick_preset(plan, n_tokens, has_accelerator)
    plan = resolve_new_model(plan, preset)
    return new_config(plan, vocab_size), plan, note


def pick_preset(plan: TrainPlan, tokens: int, has_accelerator: bool) -> tuple[str, str]:
    """Return the preset for a new model on a text of `tokens` tokens, and a note that says why."""
    if plan.preset != "auto":
        return plan.preset, _("preset {name}, as set", name=plan.preset)
    fits = [name for name, preset in PRESETS.items() if tokens >= preset.min_tokens]
    if fits[-1] == "medium" and not has_accelerator:
        return "small", _(
            "preset {name} for {tokens:,} tokens on a CPU", name="small", tokens=tokens
        )
    return fits[-1], _("preset {name} for {tokens:,} tokens", name=fits[-1], tokens=tokens)


def resolve_new_model(plan: TrainPlan, preset: str) -> TrainPlan:
    """Return a plan for a new model in which every size is given."""
    defaults = PRESETS[preset]
    arch = defaults.arch if plan.arch == "auto" else plan.arch
    d_model = plan.d_model or defaults.d_model
    n_heads = plan.n_heads or _default_n_heads(arch, d_model)
    return replace(
        plan,
        preset=preset,
        arch=arch,
        d_model=d_model,
        n_layers=plan.n_layers or defaults.n_layers,
        n_heads=n_heads,
        n_kv_heads=plan.n_kv_heads or (n_heads // 2 if n_heads % 2 == 0 else n_heads),
        context_length=plan.context_length or defaults.context_length,
        batch_size=plan.batch_size or defaults.batch_size,
        lr=plan.lr or (0.006 if arch == "gpt" else 0.01 * min(1.0, 128 / d_model) ** 0.5),
    )


def resolve_finetuning(plan: TrainPlan, config: AnyConfig) -> TrainPlan:
    """Return a plan with every size given to train a model further."""
    context_length = min(config.context_length, plan.context_length or _FINETUNE_CONTEXT)
    batch_size = plan.batch_size or max(1, _FINETUNE_BATCH_TOKENS // context_length)
    # Wider models take smaller steps, by the root of the width.
    lr = (0.02 if plan.lora_rank else 0.003) * min(1.0, 64 / config.d_model) ** 0.5
    return replace(plan, context_length=context_length, batch_size=batch_size, lr=plan.lr or lr)


def resolve_steps(plan: TrainPlan, n_tokens: int) -> TrainPlan:
    """Return a plan of sizes with its number of steps, for `n_tokens` tokens that are trained on.

    Raises UserError where both steps and epochs are set.
    """
    if plan.steps and plan.epochs:
        raise UserError(_("steps and epochs are both set; set one of them"))
    epoch_steps = n_tokens / (plan.batch_size * plan.context_length)
    if plan.epochs:
        steps = max(1, math.ceil(plan.epochs * epoch_steps))
    elif plan.preset in PRESETS:
        steps = PRESETS[plan.preset].steps
    else:  # An older model is trained further: by default about one pass.
        steps = min(1_000, max(100, int(epoch_steps)))
    return replace(plan, steps=plan.steps or steps, epochs=0.0)


def resolve_loop(plan: TrainPlan) -> TrainPlan:
    """Return a plan with the numbers of its loop given."""
    warmup = min(20, max(1, plan.steps // 5))
    count = int(eval_budget(plan) / 3 / _MIN_EVAL_TOKENS)  # a third of it is for those on the way
    count = min(_MAX_EVALS, max(_MIN_EVALS, count))
    return replace(
        plan,
        warmup_steps=warmup if plan.warmup_steps < 0 else plan.warmup_steps,
        weight_decay=0.1 if plan.weight_decay < 0 else plan.weight_decay,
        eval_interval=plan.eval_interval or min(_MAX_EVAL_INTERVAL, max(1, plan.steps // count)),
    )


def step_cost(plan: TrainPlan) -> int:
    """Return what forward and backward of a step cost, in forward passes over its tokens."""
    return _LORA_STEP_COST if plan.lora_rank else _STEP_COST


def eval_budget(plan: TrainPlan) -> float:
    """Return how many tokens all evaluations of a run may read."""
    cost = step_cost(plan) * OPTIMISER_FACTOR
    return _MAX_EVAL_SHARE * cost * plan.steps * plan.batch_size * plan.context_length


def resolve_memory(plan: TrainPlan, config: AnyConfig, device: torch.device) -> TrainPlan:
    """Return a plan that says whether activations are computed again: where the memory is too
    small to keep them.

    Raises UserError if it is too small even then.
    """
    if device.type == "cuda":
        free: int | None = torch.cuda.mem_get_info(device)[0]
    else:
        free = available_bytes() if device.type == "cpu" else None
    if plan.grad_checkpointing == "auto":
        keeps = replace(plan, grad_checkpointing="off")
        is_full = free is not None and estimate_memory(keeps, config) > free
        plan = replace(plan, grad_checkpointing="on" if is_full else "off")
    if device.type == "cpu":
        # What is certain: weights, gradients and moments; with LoRA little more is trained.
        weights = config.n_params * (2 if plan.lora_rank else 5)
        check_memory(4 * (weights + _n_logits(plan, config)), _("training at these sizes"))
    return plan


def estimate_memory(plan: TrainPlan, config: AnyConfig) -> int:
    """Return the bytes that a step of a plan takes at its peak, about."""
    tokens = _micro_batch_tokens(plan)
    # Weights, gradients, two moments and the best weights; with LoRA little more is trained.
    weights = config.n_params * (1 if plan.lora_rank else 5)
    # What the backward pass of a block needs, in numbers per token.
    block = 10 * config.d_model + 4 * config.d_mlp
    kept = config.n_layers * block
    if plan.grad_checkpointing == "on":
        kept = config.n_layers * config.d_model + block
    numbers = weights + tokens * kept + _n_logits(plan, config)
    return int(4 * _MEMORY_FACTOR * numbers)  # 4 bytes: float32


def _micro_batch_tokens(plan: TrainPlan) -> int:
    return -(-plan.batch_size // plan.grad_accum_steps) * plan.context_length


def _n_logits(plan: TrainPlan, config: AnyConfig) -> int:
    """Return how many numbers the logits, their softmax and their gradients are."""
    return 3 * _micro_batch_tokens(plan) * config.vocab_size


def new_config(plan: TrainPlan, vocab_size: int) -> AnyConfig:
    """Return the config of a new model of a settled plan.

    Raises UserError for sizes that do not go together.
    """
    if plan.arch == "gpt":
        return GPTConfig(
            vocab_size=vocab_size,
            context_length=plan.context_length,
            d_model=plan.d_model,
            n_layers=plan.n_layers,
            n_heads=plan.n_heads,
        )
    family = CanonConfig if plan.arch == "canon" else LlamaConfig
    return family(
        vocab_size=vocab_size,
        context_length=plan.context_length,
        d_model=plan.d_model,
        n_layers=plan.n_layers,
        n_heads=plan.n_heads,
        n_kv_heads=plan.n_kv_heads,
        head_dim=max(2, plan.d_model // plan.n_heads),
        # 8/3 of the width, where GPT has 4: the gate is a third matrix, and the sizes stay equal.
        d_mlp=-(-plan.d_model // 3) * 8,
        qk_norm=True,
    )


def _default_n_heads(arch: str, d_model: int) -> int:
    head_dim = 16 if arch == "gpt" and d_model <= 64 else 32 if d_model < 512 else 64
    return max(1, d_model // head_dim)

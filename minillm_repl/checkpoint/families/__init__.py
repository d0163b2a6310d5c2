"""Model families of Hugging Face: all that can be opened, and which one a model is of."""

from typing import Any

from minillm_repl.checkpoint.families.experts import GRANITE_MOE, OLMOE, QWEN3_MOE
from minillm_repl.checkpoint.families.family import Family
from minillm_repl.checkpoint.families.gemma import GEMMA2, GEMMA3, GEMMA3_IMAGES
from minillm_repl.checkpoint.families.gpt import GPT2, GPT_NEOX
from minillm_repl.checkpoint.families.granite import GRANITE, GRANITE_HYBRID, HYPERCLOVAX
from minillm_repl.checkpoint.families.lfm2 import LFM2
from minillm_repl.checkpoint.families.llama import LLAMA, MISTRAL, PHI3, QWEN2, QWEN3, SMOLLM3
from minillm_repl.checkpoint.families.post_norm import EXAONE3, EXAONE4, OLMO2, OLMO3
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config import AnyConfig
from minillm_repl.safetext import safe_line

# The order matters for `family_of`: the first family that can express a config wins.
FAMILIES = (
    *(GPT2, GPT_NEOX, LLAMA, MISTRAL, QWEN2, QWEN3, SMOLLM3, PHI3),
    *(GRANITE, GRANITE_HYBRID, HYPERCLOVAX, OLMO2, OLMO3, EXAONE4, EXAONE3),
    *(GEMMA2, GEMMA3, GEMMA3_IMAGES, QWEN3_MOE, OLMOE, GRANITE_MOE, LFM2),
)

# Types whose published folders name code of their own (`auto_map`), which is not needed here.
WITH_OWN_CODE = (EXAONE3.model_type, PHI3.model_type)


def find_family(model_type: Any) -> Family:
    """Return the family of a `model_type`. Raises UserError with the supported ones."""
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    types = ", ".join(family.model_type for family in FAMILIES)
    if model_type is None:
        raise UserError(
            _(
                "config.json has no model_type; supported types: {types}",
                types=types,
            )
        )
    raise UserError(
        _(
            "unsupported model type {type!r:.40}; supported types: {types}",
            type=safe_line(str(model_type)),
            types=types,
        )
    )


def family_of(config: AnyConfig, model_type: str = "") -> Family | None:
    """Return the first family whose config.json can express this config, or None.

    The family of `model_type`, where the model was read from, is the first that is asked.
    """
    for family in sorted(FAMILIES, key=lambda each: each.model_type != model_type):
        if family.arch != config.arch or family.inner_config:
            continue
        try:
            # A round trip through config.json shows whether the family has a field for everything.
            if family.parse_config(family.write_config(config)) == config:
                return family
        except UserError:
            continue
    return None


def family_title(config: AnyConfig, model_type: str = "") -> str:
    """Return the title of a model with this config: `GPT-2`, `Llama`; `GPT` for the study note's.

    `model_type` is that of its config.json. A native model of model/llama.py, which has none, is a
    Llama, even if its config fits another family.
    """
    if model_type:
        return find_family(model_type).title
    # A native file of a GPT may be the study note's, which no family of Hugging Face fits.
    family = None if config.arch == "llama" else family_of(config)
    return family.title if family else {"gpt": "GPT"}.get(config.arch, config.arch.title())

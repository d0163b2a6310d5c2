"""How a text is split into words before a byte-level BPE merges each.

A file has only the name of a way (`tokenizer.ggml.pre`): what each name means in llama.cpp.
"""

from minillm_repl.tokenizer.patterns import (
    DEFAULT,
    DIGIT,
    EXAONE_MOE,
    GPT2,
    GPT4O,
    LLAMA3,
    PUNCTUATION,
    QWEN2,
    QWEN35,
    TEKKEN,
    THREE_DIGITS,
)

SPLITS = {  # by what is split: the patterns, each applied to what the one before has left whole
    **dict.fromkeys(
        (
            "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4",
            "a.x-4.0", "gigachat", "roberta-bpe", "mellum", "modern-bert",
        ),
        (GPT2,),
    ),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b",
         "mellum2"),
        (DIGIT, GPT2),
    ),
    **dict.fromkeys(
        (
            "llama-bpe", "llama3", "llama-v3", "lfm2", "midm-2.0", "falcon3", "falcon-h1",
            "pixtral", "dbrx", "smaug-bpe", "glm4", "chatglm-bpe",
        ),
        (LLAMA3,),
    ),
    **dict.fromkeys(
        (
            "qwen2", "deepseek-r1-qwen", "kormo", "megrez", "stablelm2", "hunyuan", "solar-open",
            "grok-2",
        ),
        (QWEN2,),
    ),
    "qwen35": (QWEN35,),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), (GPT4O,)),
    "tekken": (TEKKEN,),
    "exaone-moe": (EXAONE_MOE,),
    "falcon": (PUNCTUATION, GPT2, THREE_DIGITS),
    "default": DEFAULT,
}  # fmt: skip

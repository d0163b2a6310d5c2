"""How a text is split into words before a byte-level BPE merges each.

A file has only the name of a way (`tokenizer.ggml.pre`): what each name means in llama.cpp.
"""

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_SPACES}"
)
_QWEN2 = _LLAMA3.replace("{1,3}", "")
_QWEN35 = _QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(
    r"[^\s\p{L}\p{N}]+", r"[^\s\p{L}\p{M}\p{N}]+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_SPACES}"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_SPACES}"
)
_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|`]+"  # of Falcon
_EXAONE_MOE = (  # words of a sentence stay together
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
# llama.cpp splits so where a file names nothing; it says that the quality of the text suffers.
_DEFAULT = (_PUNCTUATION.replace("`", ""), _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")

SPLITS = {  # by what is split: the patterns, each applied to what the one before has left whole
    **dict.fromkeys(
        (
            "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4",
            "a.x-4.0", "gigachat", "roberta-bpe", "mellum", "modern-bert",
        ),
        (_GPT2,),
    ),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b",
         "mellum2"),
        (r"\p{N}", _GPT2),
    ),
    **dict.fromkeys(
        (
            "llama-bpe", "llama3", "llama-v3", "lfm2", "midm-2.0", "falcon3", "falcon-h1",
            "pixtral", "dbrx", "smaug-bpe", "glm4", "chatglm-bpe",
        ),
        (_LLAMA3,),
    ),
    **dict.fromkeys(
        (
            "qwen2", "deepseek-r1-qwen", "kormo", "megrez", "stablelm2", "hunyuan", "solar-open",
            "grok-2",
        ),
        (_QWEN2,),
    ),
    "qwen35": (_QWEN35,),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), (_GPT4O,)),
    "tekken": (_TEKKEN,),
    "exaone-moe": (_EXAONE_MOE,),
    "falcon": (_PUNCTUATION, _GPT2, "[0-9][0-9][0-9]"),
    "default": _DEFAULT,
}  # fmt: skip

"""GGUF files that nobody should be able to open, made by code, byte by byte; none is right."""

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.hostile import ESCAPES

Named = Iterator[tuple[str, bytes]]
Pair = tuple[str, bytes]  # a key, and its value with the type before it

CHARACTERS = "Ġabcdefghij"
U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_FORMATS = dict(zip(range(13), "BbHhIifB  Qqd", strict=True))


def text(value: str | bytes, length: int | None = None) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data) if length is None else length) + data


def scalar(kind: int, value: int | float | str) -> bytes:
    data = text(value) if kind == STRING else struct.pack("<" + _FORMATS[kind], value)
    return struct.pack("<I", kind) + data


def array(kind: int, values: list, count: int | None = None) -> bytes:
    many = len(values) if count is None else count
    packed = [
        text(each) if kind == STRING else struct.pack("<" + _FORMATS[kind], each) for each in values
    ]
    return struct.pack("<IIQ", ARRAY, kind, many) + b"".join(packed)


def metadata() -> dict[str, bytes]:
    """A Llama of two layers with a vocabulary of 11 letters."""
    return {
        "general.architecture": scalar(STRING, "llama"),
        "llama.block_count": scalar(U32, 2),
        "llama.context_length": scalar(U32, 16),
        "llama.embedding_length": scalar(U32, 8),
        "llama.feed_forward_length": scalar(U32, 12),
        "llama.attention.head_count": scalar(U32, 2),
        "llama.attention.head_count_kv": scalar(U32, 1),
        "llama.attention.layer_norm_rms_epsilon": scalar(F32, 1e-5),
        "llama.rope.freq_base": scalar(F32, 10_000.0),
        "tokenizer.ggml.model": scalar(STRING, "gpt2"),
        "tokenizer.ggml.pre": scalar(STRING, "gpt-2"),
        "tokenizer.ggml.tokens": array(STRING, list(CHARACTERS)),
        "tokenizer.ggml.token_type": array(I32, [1] * len(CHARACTERS)),
        "tokenizer.ggml.merges": array(STRING, []),
        "tokenizer.ggml.eos_token_id": scalar(U32, 1),
    }


def tensors() -> dict[str, np.ndarray]:
    noise = np.random.default_rng(0)
    shapes = {"token_embd.weight": (11, 8), "output_norm.weight": (8,)}
    for layer in range(2):
        shapes |= {
            f"blk.{layer}.{name}.weight": shape
            for name, shape in {
                "attn_norm": (8,),
                "attn_q": (8, 8),
                "attn_k": (4, 8),
                "attn_v": (4, 8),
                "attn_output": (8, 8),
                "ffn_norm": (8,),
                "ffn_gate": (12, 8),
                "ffn_up": (12, 8),
                "ffn_down": (8, 12),
            }.items()
        }
    return {name: noise.normal(size=shape).astype("<f4") for name, shape in shapes.items()}


def described(
    name: str, shape: tuple[int, ...], kind: int, offset: int, n_dims: int | None = None
) -> bytes:
    dims = b"".join(struct.pack("<Q", n) for n in shape[::-1])
    many = len(shape) if n_dims is None else n_dims
    return text(name) + struct.pack("<I", many) + dims + struct.pack("<IQ", kind, offset)


def packed(
    pairs: dict[str, bytes] | list[tuple[str | bytes, bytes]] | None = None,
    arrays: dict[str, np.ndarray] | None = None,
    *,
    infos: dict[str, bytes] | None = None,
    n_tensors: int | None = None,
    n_keys: int | None = None,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """A GGUF file. `infos` are descriptions that replace those of some tensors."""
    pairs = metadata() if pairs is None else pairs
    listed = list(pairs.items()) if isinstance(pairs, dict) else pairs
    arrays = tensors() if arrays is None else arrays
    descriptions, data = [], b""
    for name, each in arrays.items():
        data += bytes(-len(data) % alignment)
        right = described(name, each.shape, {4: 0, 2: 1}[each.itemsize], len(data))
        descriptions.append((infos or {}).get(name, right))
        data += each.tobytes()
    head = b"GGUF" + struct.pack(
        "<IQQ",
        version,
        len(arrays) if n_tensors is None else n_tensors,
        len(listed) if n_keys is None else n_keys,
    )
    head += b"".join(text(key) + value for key, value in listed) + b"".join(descriptions)
    return head + bytes(-len(head) % alignment) + data


RIGHT = packed()


def heads() -> Named:
    for size in (*range(4, 60), 100, 200, 500, 1000):
        yield f"the first {size} bytes", RIGHT[:size]
    for place in range(1, 30):
        yield f"cut at {place}/30", RIGHT[: len(RIGHT) * place // 30]
    for more in (64, 4096):
        yield f"{more} bytes too many", RIGHT + bytes(more)
    for version in (0, 1, 4, 2**31, 0x03000000, 0x02000000):
        yield f"version {version}", packed(version=version)
    for count in (0, 1, 21, 100, 10**6, 2**32, 2**60, 2**63, 2**64 - 1):
        if count != len(tensors()):
            yield f"{count} tensors", packed(n_tensors=count)
        if count != len(metadata()):
            yield f"{count} keys", packed(n_keys=count)
    for magic in (b"GGML", b"GGUf", b"FUGG", b"\0\0\0\0"):
        yield f"the magic {magic!r}", magic + RIGHT[4:]
    for seed in range(40):
        noise = random.Random(seed)
        yield f"noise {seed}", RIGHT[:24] + noise.randbytes(2_000)


def values() -> Named:
    """One value of the metadata that is none."""
    for length in (2**16, 2**31, 2**32, 2**40, 2**60, 2**63, 2**64 - 1):
        yield f"a key of {length} bytes", RIGHT[:24] + struct.pack("<Q", length) + bytes(2_000)
        yield (
            f"a string of {length} bytes",
            packed(metadata() | {"a": struct.pack("<IQ", STRING, length)}),
        )
        for kind in (U8, F32, STRING, U64):
            yield (
                f"an array of {length} times type {kind}",
                packed(metadata() | {"a": struct.pack("<IIQ", ARRAY, kind, length)}),
            )
    for kind in (13, 14, 255, 2**31, 2**32 - 1):
        yield f"type {kind}", packed(metadata() | {"a": struct.pack("<I", kind) + bytes(8)})
        yield (
            f"an array of type {kind}",
            packed(metadata() | {"a": struct.pack("<IIQ", ARRAY, kind, 1) + bytes(8)}),
        )
    nested = b"".join(struct.pack("<IQ", ARRAY, 1) for _level in range(1_000))
    yield "an array in an array", packed(metadata() | {"a": struct.pack("<I", ARRAY) + nested})
    for flag in (2, 255):
        yield f"a truth of {flag}", packed(metadata() | {"a": struct.pack("<IB", BOOL, flag)})
        yield f"truths of {flag}", packed(metadata() | {"a": array(BOOL, [0, 1, flag])})
    for bad in (b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xf8\x88\x80\x80\x80"):
        yield f"a value {bad!r}", packed(metadata() | {"a": struct.pack("<I", STRING) + text(bad)})
        yield (
            f"an array of {bad!r}",
            packed(metadata() | {"a": struct.pack("<IIQ", ARRAY, STRING, 1) + text(bad)}),
        )
        yield f"a key {bad!r}", packed([*metadata().items(), (bad, scalar(U8, 1))])
    for key in ("", ESCAPES, "a\nb", "가", "a\0"):
        yield f"the key {key!r}", packed(metadata() | {key: scalar(U8, 1)})
    for key in metadata():
        yield f"{key} twice", packed([*metadata().items(), (key, metadata()[key])])
    for alignment in (0, 3, 33, 2**20, 2**31):
        yield (
            f"aligned to {alignment}",
            packed(metadata() | {"general.alignment": scalar(U32, alignment)}),
        )
    yield "aligned to a text", packed(metadata() | {"general.alignment": scalar(STRING, "32")})
    yield "aligned to true", packed(metadata() | {"general.alignment": scalar(BOOL, 1)})


def descriptions() -> Named:
    """One tensor described wrongly."""
    name, shape = "blk.1.ffn_up.weight", (12, 8)
    arrays = tensors()
    place = dict[str, int]()
    at = 0
    for each, values in arrays.items():
        place[each] = at
        at += -(-values.nbytes // 32) * 32
    offset = place[name]

    def wrong(*parts: object, **more: object) -> bytes:
        return packed(infos={name: described(*parts, **more)})  # type: ignore[arg-type]

    for n_dims in (0, 1, 3, 5, 8, 2**31, 2**32 - 1):
        yield f"{n_dims} dimensions", wrong(name, shape, 0, offset, n_dims=n_dims)
    for bad in (
        (0, 8),
        (12, 0),
        (2**48, 8),
        (2**63, 2),
        (2**32, 2**32),
        (2**62, 4),
        (11, 8),
        (13, 8),
        (8, 12),
        (96,),
        (1, 12, 8),
    ):
        yield f"the shape {bad}", wrong(name, bad, 0, offset)
    for kind in (
        1,
        2,
        3,
        4,
        5,
        6,
        8,
        12,
        14,
        16,
        24,
        26,
        27,
        28,
        30,
        31,
        36,
        39,
        42,
        255,
        2**31,
        2**32 - 1,
    ):
        yield f"the type {kind}", wrong(name, shape, kind, offset)
    for bad in (
        1,
        4,
        offset + 1,
        offset + 32,
        offset - 32,
        0,
        2**31,
        2**40,
        2**60,
        2**63,
        2**64 - 32,
    ):
        yield f"the offset {bad}", wrong(name, shape, 0, bad)
    for other in ("", "blk.0.ffn_up.weight", "x", ESCAPES, "blk.2.ffn_up.weight", "a" * 2_000):
        yield f"the name {other!r:.40}", wrong(other, shape, 0, offset)
    for length in (2**31, 2**60, 2**64 - 1):
        yield (
            f"a name of {length} bytes",
            packed(infos={name: text(name, length) + described(name, shape, 0, offset)[8:]}),
        )
    for missing in arrays:
        yield f"without {missing}", packed(arrays={k: v for k, v in arrays.items() if k != missing})
    for spoilt in ("token_embd.weight", "blk.0.attn_q.weight", "output_norm.weight"):
        for bad in (np.nan, np.inf, -np.inf):
            changed = {key: each.copy() for key, each in arrays.items()}
            changed[spoilt].flat[-1] = bad
            yield f"{bad} in {spoilt}", packed(arrays=changed)
    yield "a tensor too many", packed(arrays=arrays | {"more.weight": np.zeros((2, 3), "<f4")})


def contents() -> Named:
    """Values that no model can have, or no tokenizer."""
    for key in metadata():
        optional = ("token_type", "eos_token_id", "head_count_kv", "freq_base", "merges")
        if not key.endswith((*optional, ".pre")):
            yield f"without {key}", packed({k: v for k, v in metadata().items() if k != key})
        for odd in (
            scalar(STRING, ESCAPES),
            scalar(U64, 2**40),
            scalar(I32, -1),
            scalar(F32, float("nan")),
            scalar(BOOL, 1),
            array(STRING, ["x"] * 3),
            array(F32, [1.0]),
        ):
            # A special token out of range is none, in llama.cpp too.
            may_be = {
                "llama.rope.freq_base": [scalar(U64, 2**40)],
                "tokenizer.ggml.eos_token_id": [scalar(U64, 2**40), scalar(I32, -1)],
            }.get(key, [])
            if odd != metadata()[key] and odd not in may_be:
                yield f"{key} = {odd!r:.30}", packed(metadata() | {key: odd})
    for architecture in ("", "bert", "t5", "mamba", "x" * 1_000, "clip"):
        yield (
            f"architecture {architecture:.20}",
            packed(metadata() | {"general.architecture": scalar(STRING, architecture)}),
        )
    tokens = list(CHARACTERS)
    for name, many in {
        "a token twice": [*tokens[:-1], "a"],
        "fewer tokens": tokens[:-1],
        "more tokens": [*tokens, "k"],
        "no tokens": [],
    }.items():
        yield name, packed(metadata() | {"tokenizer.ggml.tokens": array(STRING, many)})
    for name, merges in {
        "of one word": ["ab"],
        "of three words": ["a b c"],
        "of nothing": [""],
        "of unknown tokens": ["x y"],
        "into an unknown token": ["a b"],
    }.items():
        yield (
            f"a merge {name}",
            packed(metadata() | {"tokenizer.ggml.merges": array(STRING, merges)}),
        )
    for pre in ("unheard-of", ESCAPES):
        yield f"pre {pre!r}", packed(metadata() | {"tokenizer.ggml.pre": scalar(STRING, pre)})
    for types in ([1], [9] * 11, [-1] * 11):
        yield (
            f"types {types[:2]}",
            packed(metadata() | {"tokenizer.ggml.token_type": array(I32, types)}),
        )
    for count, number in ((2, 0), (2**16 - 1, 1), (1_000, 0)):
        pairs = {"split.count": scalar(U16, count), "split.no": scalar(U16, number)}
        yield f"part {number} of {count}", packed(metadata() | pairs)


def all_of(folder: Path) -> Iterator[tuple[str, Path]]:
    """Write every file into a folder, and yield what it is and where."""
    for family in (heads, values, descriptions, contents):
        for number, (name, data) in enumerate(family()):
            path = folder / f"{family.__name__}-{number}.gguf"
            path.write_bytes(data)
            yield f"{family.__name__}: {name}", path

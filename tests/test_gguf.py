"""GGUF files; the `gguf` package of llama.cpp writes them, `transformers` says what they mean."""

import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

pytest.importorskip(
    "gguf", reason="needs llama.cpp's package gguf, which writes GGUF files: pip install gguf"
)

import gguf

from minillm_repl.checkpoint.gguf.header import read_gguf_header
from minillm_repl.checkpoint.gguf.quantise import quantise_q4_0, quantise_q8_0
from minillm_repl.checkpoint.gguf.write import save_gguf
from minillm_repl.checkpoint.load_save import load, summarise
from minillm_repl.errors import UserError
from minillm_repl.generate.backends import make_decoder
from minillm_repl.model.bfloat16 import to_float32
from minillm_repl.model.build import build
from minillm_repl.model.quantised import BlockMatrix
from minillm_repl.storage.paths import find_checkpoint
from minillm_repl.tokenizer import CharacterTokenizer
from minillm_repl.tokenizer.ids import IdTokenizer
from tests import hostile_gguf
from tests.gguf_files import Type, letters, write
from tests.test_huggingface import GPT2, LLAMA, LLAMA3, NEOX, random_model

t = transformers
WIDE = LLAMA | {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
MODELS = {
    "llama": (t.LlamaConfig, WIDE),
    "llama tied, biased": (
        t.LlamaConfig,
        WIDE | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    "llama, rope llama3": (
        t.LlamaConfig,
        WIDE | {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 8192}},
    ),
    "llama, rope linear": (
        t.LlamaConfig,
        WIDE | {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "llama, one key for all": (t.LlamaConfig, WIDE | {"num_key_value_heads": 1, "head_dim": 24}),
    "mistral without window": (t.MistralConfig, WIDE | {"sliding_window": None}),
    "qwen2": (t.Qwen2Config, WIDE),
    "qwen3": (t.Qwen3Config, WIDE | {"head_dim": 24}),
    "gpt2": (t.GPT2Config, GPT2 | {"n_embd": 64, "n_inner": 96, "n_layer": 2}),
    "gpt_neox": (
        t.GPTNeoXConfig,
        NEOX | {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2},
    ),
}
DEEP = WIDE | {"num_hidden_layers": 7, "sliding_window": 9}
MODELS |= {
    "smollm3": (t.SmolLM3Config, WIDE | {"num_hidden_layers": 5, "pad_token_id": None}),
    "granite": (
        t.GraniteConfig,
        WIDE
        | {
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.0078125,
            "logits_scaling": 8.0,
        },
    ),
    "exaone4": (
        t.Exaone4Config,
        WIDE | {"sliding_window": None, "layer_types": ["full_attention"] * 2},
    ),
    "exaone4 with windows": (t.Exaone4Config, DEEP | {"sliding_window_pattern": 4}),
    "olmo2": (t.Olmo2Config, WIDE | {"pad_token_id": None}),
    "phi3": (t.Phi3Config, WIDE | {"sliding_window": None, "pad_token_id": None}),
    "gemma2": (t.Gemma2Config, DEEP | {"head_dim": 24, "query_pre_attn_scalar": 24}),
    "gemma3": (t.Gemma3TextConfig, DEEP | {"head_dim": 24, "query_pre_attn_scalar": 24}),
}
MOE = WIDE | {"num_experts": 5, "num_experts_per_tok": 2}
MODELS |= {
    "qwen3moe": (
        t.Qwen3MoeConfig,
        MOE | {"head_dim": 24, "moe_intermediate_size": 32, "norm_topk_prob": True},
    ),
    "olmoe": (t.OlmoeConfig, MOE | {"pad_token_id": None, "num_key_value_heads": 4}),
    "granitemoe": (
        t.GraniteMoeConfig,
        WIDE
        | {
            "num_local_experts": 4,
            "num_experts_per_tok": 3,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.0078125,
            "logits_scaling": 8.0,
        },
    ),
}
MODELS["lfm2"] = (
    t.Lfm2Config,
    WIDE
    | {
        "num_hidden_layers": 3,
        "layer_types": ["conv", "full_attention", "conv"],
        "block_auto_adjust_ff_dim": False,
    },
)
KINDS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
IDS = list(range(3, 40))


def made(name):
    return random_model(*MODELS[name])


def logits_of(model):
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].numpy()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_logits_are_those_of_transformers_with_the_rounded_weights(name, kind, tmp_path):
    model = made(name)
    write(model, tmp_path / "a.gguf", Type[kind])
    checkpoint, expected = load(tmp_path / "a.gguf"), logits_of(model)
    with torch.no_grad():
        ours = build(checkpoint.config, checkpoint.tensors)(torch.tensor([IDS]))[0].numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    decoder = make_decoder(checkpoint)
    np.testing.assert_allclose(decoder.prefill(IDS), expected[-1], atol=5e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_stays_in_its_blocks_and_is_what_gguf_makes_of_it(kind, tmp_path):
    model = made("qwen3")
    write(model, tmp_path / "a.gguf", Type[kind])
    in_blocks = load(tmp_path / "a.gguf")
    as_floats = load(tmp_path / "a.gguf", dtype="float32")
    weights = model.state_dict()
    down = "blocks.1.mlp.down.weight"
    expected = weights["model.layers.1.mlp.down_proj.weight"].numpy()
    assert isinstance(in_blocks.tensors[down], BlockMatrix) == kind.startswith("Q")
    for checkpoint in (in_blocks, as_floats):
        np.testing.assert_array_equal(to_float32(checkpoint.arrays()[down]), expected)
    assert as_floats.dtype == "float32"
    floats = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    assert in_blocks.dtype == floats.get(kind, kind)
    logits = logits_of(model)
    for checkpoint in (in_blocks, as_floats):
        decoder = make_decoder(checkpoint)
        for place, token in enumerate(IDS):
            np.testing.assert_allclose(decoder.decode(token), logits[place], atol=1e-4)


def test_parts_of_one_matrix_may_have_different_types(tmp_path):
    model = made("llama")
    kinds = {"attn_v.weight": Type.Q5_1, "attn_k.weight": Type.F16, "ffn_up.weight": Type.BF16}
    write(model, tmp_path / "a.gguf", Type.Q4_0, kinds=kinds)
    checkpoint = load(tmp_path / "a.gguf")
    qkv = checkpoint.tensors["blocks.0.attention.qkv.weight"]
    queries, keys, values = qkv.parts
    assert (queries.kind.name, keys.dtype, values.kind.name) == ("Q4_0", "float16", "Q5_1")
    whole = qkv.to_float32()
    np.testing.assert_array_equal(qkv[60:70], whole[60:70])
    np.testing.assert_array_equal(qkv[[[99, 0], [65, 64]]], whole[[[99, 0], [65, 64]]])
    np.testing.assert_array_equal(qkv[63:98], whole[63:98])
    expected = logits_of(model)
    decoder = make_decoder(checkpoint)
    np.testing.assert_allclose(decoder.prefill(IDS[:-1]), expected[-2], atol=1e-4)
    np.testing.assert_allclose(decoder.decode(IDS[-1]), expected[-1], atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gpt2"])
def test_transformers_reads_the_same_numbers_from_the_file(name, tmp_path):
    pytest.importorskip("accelerate", reason="transformers reads GGUF files with accelerate only")
    kind, sizes = MODELS[name]
    # What it does not read from a file: the head_dim of a Qwen 3, two sizes of a GPT-2.
    unread = {"qwen3": {"head_dim": 128}, "gpt2": {"n_inner": None, "n_positions": 1024}}
    model = random_model(kind, sizes | unread.get(name, {}))
    tokens = letters(model.config.vocab_size)
    metadata = {
        "add_tokenizer_model": "gpt2", "add_tokenizer_pre": "gpt-2", "add_token_list": tokens,
        "add_token_types": [1] * len(tokens), "add_token_merges": ["a b"], "add_bos_token_id": 1,
        "add_eos_token_id": 2,
    }  # fmt: skip
    metadata["add_token_list"] = [*tokens[:-1], "ab"]
    write(model, tmp_path / "a.gguf", Type.Q8_0, metadata)
    theirs = t.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="a.gguf", dtype=torch.float32, attn_implementation="eager"
    )
    ours = make_decoder(load(tmp_path / "a.gguf")).prefill(IDS)
    np.testing.assert_allclose(ours, logits_of(theirs)[-1], atol=1e-3)


def test_all_parts_of_a_split_file_open_by_any_of_them(tmp_path):
    model = made("llama")
    write(model, tmp_path / "whole.gguf")
    write(model, tmp_path / "split.gguf", split=5)
    parts = sorted(tmp_path.glob("split-*.gguf"))
    assert len(parts) > 2
    whole = load(tmp_path / "whole.gguf")
    for part in (parts[0], parts[-1]):
        checkpoint = load(part)
        assert checkpoint.config == whole.config
        for name, array in whole.tensors.items():
            np.testing.assert_array_equal(checkpoint.tensors[name], array)
    assert summarise(parts[1]).size == sum(part.stat().st_size for part in parts)
    parts[1].rename(tmp_path / "elsewhere.gguf")
    with pytest.raises(UserError, match="cannot open .*split-00002-of-"):
        load(parts[0])
    parts[0].rename(parts[1])
    with pytest.raises(UserError, match="cannot open .*split-00001-of-"):
        load(parts[1])
    (tmp_path / parts[0].name).write_bytes(parts[1].read_bytes())
    with pytest.raises(UserError, match="is not part 2 of"):
        load(parts[0])


def test_a_file_that_says_nothing_of_words_opens_with_a_note_and_an_unknown_way_is_refused(
    tmp_path,
):
    right = hostile_gguf.metadata()
    named = {"tokenizer.ggml.pre": hostile_gguf.scalar(hostile_gguf.STRING, "klingon")}
    left = {key: value for key, value in right.items() if not key.endswith(".pre")}
    for name, pairs in {"right": right, "left": left, "named": right | named}.items():
        (tmp_path / f"{name}.gguf").write_bytes(hostile_gguf.packed(pairs))
    assert not load(tmp_path / "right.gguf").notes
    assert "tokenizer.ggml.pre" in load(tmp_path / "left.gguf").notes[0]
    with pytest.raises(UserError, match=r"named\.gguf: .*\(tokenizer\.ggml\.pre\): klingon"):
        load(tmp_path / "named.gguf")


def test_the_header_is_that_of_the_gguf_package(tmp_path):
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    kinds = {"uint8": 200, "int8": -3, "uint16": 60_000, "int16": -300, "uint32": 2**32 - 1,
             "int32": -(2**31), "uint64": 2**64 - 1, "int64": -(2**63), "float32": 1.5,
             "float64": 1e300, "bool": True, "string": "날씨 🌤"}  # fmt: skip
    for kind, value in kinds.items():
        getattr(writer, f"add_{kind}")(f"a.{kind}", value)
    writer.add_array("b", [1.5, -2.5])
    writer.add_array("c", ["가", "", "나"])
    writer.add_array("d", [True, False])
    writer.add_custom_alignment(64)
    rng = np.random.default_rng(0)
    for number, kind in enumerate(KINDS):
        array = rng.normal(size=(3 + number, 64)).astype(np.float32)
        writer.add_tensor(
            f"x{number}", gguf.quants.quantize(array, Type[kind]), raw_dtype=Type[kind]
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header, theirs = read_gguf_header(path), gguf.GGUFReader(path)
    for kind, value in kinds.items():
        assert header.metadata[f"a.{kind}"] == value
    assert (header.metadata["b"], header.metadata["c"]) == ([1.5, -2.5], ["가", "", "나"])
    assert header.metadata["d"] == [True, False]
    assert len(header.tensors) == len(theirs.tensors)
    for tensor in theirs.tensors:
        ours = header.tensors[tensor.name]
        assert (ours.start, ours.nbytes) == (tensor.data_offset, tensor.n_bytes)
        assert (ours.dtype, ours.shape) == (tensor.tensor_type.name, tuple(tensor.shape[::-1]))


# -- hostile files


def test_the_file_that_the_hostile_ones_are_made_from_opens(tmp_path):
    (tmp_path / "right.gguf").write_bytes(hostile_gguf.RIGHT)
    checkpoint = load(tmp_path / "right.gguf")
    assert checkpoint.tokenizer.encode("abc a") == [1, 2, 3, 0, 1]
    assert checkpoint.eos_token_ids == (1,)
    assert summarise(tmp_path / "right.gguf").family == "Llama"


def test_every_hostile_file_is_refused_in_one_clean_line(tmp_path):
    count, wrong = 0, []
    for name, path in hostile_gguf.all_of(tmp_path):
        count += 1
        try:
            load(path)
            wrong.append((name, "was opened"))
        except UserError as error:
            if not str(error).isprintable() or len(str(error)) > 700:
                wrong.append((name, str(error)))
    assert not wrong
    assert count > 450


def test_a_file_that_takes_no_room_and_claims_all_memory_is_refused(tmp_path):
    data = bytearray(hostile_gguf.RIGHT)
    width = struct.pack("<QQ", 8, 11)
    place = data.index(width)
    data[place : place + 16] = struct.pack("<QQ", 2**16, 2**21)
    (tmp_path / "huge.gguf").write_bytes(data)
    with pytest.raises(UserError, match="tensors that leave gaps, or overlap|truncated"):
        load(tmp_path / "huge.gguf")


def test_quantised_weights_that_are_not_finite_are_refused(tmp_path):
    model = made("llama")
    write(model, tmp_path / "a.gguf", Type.Q8_0)
    info = read_gguf_header(tmp_path / "a.gguf").tensors["blk.1.ffn_down.weight"]
    data = bytearray((tmp_path / "a.gguf").read_bytes())
    data[info.start + 34 : info.start + 36] = np.float16(np.inf).tobytes()
    (tmp_path / "a.gguf").write_bytes(data)
    with pytest.raises(UserError, match=r"damaged: blk\.1\.ffn_down\.weight"):
        load(tmp_path / "a.gguf")
    weights = load(tmp_path / "a.gguf", allow_nonfinite=True).arrays()
    assert not np.isfinite(weights["blocks.1.mlp.down.weight"]).all()


# -- what is written


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_matrices_are_rounded_as_the_gguf_package_rounds_them(kind):
    rng = np.random.default_rng(3)
    array = rng.normal(size=(64, 96)).astype(np.float32)
    array[0], array[1, :32], array[2] = 0, 1e-30, np.round(array[2] * 4) / 8  # ties
    ours = {"Q8_0": quantise_q8_0, "Q4_0": quantise_q4_0}[kind](array)
    np.testing.assert_array_equal(ours.reshape(64, -1), gguf.quants.quantize(array, Type[kind]))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_is_saved_is_the_same_model(name, tmp_path):
    model = made(name)
    write(model, tmp_path / "a.gguf")
    checkpoint = load(tmp_path / "a.gguf")
    save_gguf(checkpoint, tmp_path / "b.gguf", "f16")
    again, theirs = load(tmp_path / "b.gguf"), gguf.GGUFReader(tmp_path / "b.gguf")
    assert again.config == checkpoint.config
    assert again.tokenizer.to_json() == checkpoint.tokenizer.to_json()
    # What llama.cpp's own writer names is there under the same names, with the same values.
    before, after = (read_gguf_header(tmp_path / f"{file}.gguf") for file in "ab")
    written = {key: value for key, value in before.metadata.items() if key in after.metadata}
    wanted = {key for key in before.metadata if not key.endswith(".add_space_prefix")}
    assert wanted == set(written)
    assert all(after.metadata[key] == pytest.approx(written[key]) for key in wanted)
    assert {t.name: tuple(t.shape) for t in theirs.tensors} == {
        t.name: tuple(t.shape) for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors
    }
    for tensor, array in checkpoint.tensors.items():
        ours = to_float32(again.tensors[tensor])
        is_float32 = (
            array.ndim == 1 or "position" in tensor or "router" in tensor or "taps" in tensor
        )
        expected = array if is_float32 else array.astype(np.float16)
        np.testing.assert_array_equal(ours, expected.astype(np.float32))


def test_a_number_that_float32_has_rounded_is_no_other_number(tmp_path):
    """Folders made of a GGUF file have an epsilon of 9.999999747378752e-06."""
    write(made("llama"), tmp_path / "a.gguf")
    checkpoint = load(tmp_path / "a.gguf")
    rounded = replace(checkpoint.config, norm_eps=float(np.float32(1e-5)))
    save_gguf(replace(checkpoint, config=rounded), tmp_path / "b.gguf")
    assert load(tmp_path / "b.gguf").config.norm_eps == 1e-5


def test_weights_in_bfloat16_stay_in_it_and_too_large_ones_do_not_become_infinite(tmp_path):
    model = made("llama")
    model.lm_head.weight.data[3, 3] = 1e6
    write(model, tmp_path / "a.gguf", Type.BF16)
    checkpoint = load(tmp_path / "a.gguf")
    save_gguf(checkpoint, tmp_path / "b.gguf")
    again = load(tmp_path / "b.gguf")
    assert again.dtype == "bfloat16"
    for name, array in checkpoint.tensors.items():
        np.testing.assert_array_equal(to_float32(again.tensors[name]), to_float32(array))
    with pytest.raises(
        UserError, match=r"output\.weight has values too large for f16: use type=bf"
    ):
        save_gguf(checkpoint, tmp_path / "c.gguf", "f16")


def test_what_llama_cpp_could_not_run_is_not_written(tmp_path):
    window = random_model(t.MistralConfig, WIDE | {"sliding_window": 7})
    window.save_pretrained(tmp_path / "window")
    relu = random_model(t.GPT2Config, GPT2 | {"activation_function": "relu"})
    write(relu, tmp_path / "relu.gguf")
    checkpoint = load(tmp_path / "relu.gguf")
    with_relu = replace(checkpoint, config=replace(checkpoint.config, activation="relu"))
    (tmp_path / "mine.gguf").write_text("my notes")
    for made_, message in (
        (load(tmp_path / "window"), "no architecture for this model"),
        (replace(checkpoint, tokenizer=IdTokenizer(97)), "no vocabulary"),
        (with_relu, "no gpt2 with the activation relu"),
        (replace(checkpoint, tokenizer=CharacterTokenizer(map(chr, range(97)))), "no token <unk>"),
    ):
        with pytest.raises(UserError, match=message):
            save_gguf(made_, tmp_path / "out.gguf")
    with pytest.raises(UserError, match="exists and is no GGUF file"):
        save_gguf(checkpoint, tmp_path / "mine.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.gguf", "relu.gguf", "window"]


TEXTS = {"nalssi": "날씨가 좋", "story": "Once upon a time", "hangul": "질문: 안녕\n답변: "}


@pytest.mark.parametrize("name", TEXTS)
def test_shipped_models_saved_as_gguf_say_the_same(name, tmp_path):
    checkpoint = load(find_checkpoint(name))
    save_gguf(checkpoint, tmp_path / "a.gguf")
    again = load(tmp_path / "a.gguf")
    ids = checkpoint.tokenizer.encode(TEXTS[name])
    assert again.tokenizer.encode(TEXTS[name]) == ids
    assert greedy(again, ids, 20) == greedy(checkpoint, ids, 20)


@pytest.mark.parametrize("name", TEXTS)
def test_llama_cpp_says_the_same_from_what_is_saved(name, tmp_path):
    llama_cpp = pytest.importorskip(
        "llama_cpp", reason="needs llama.cpp itself: pip install llama-cpp-python"
    )
    checkpoint = load(find_checkpoint(name))
    # In Q8_0 it rounds the activations too, and a near tie may go the other way.
    save_gguf(checkpoint, tmp_path / "a.gguf", "f16")
    ids = checkpoint.tokenizer.encode(TEXTS[name])
    # nalssi sees 32 tokens.
    count = min(32, checkpoint.config.context_length - len(ids))
    theirs = llama_cpp.Llama(
        str(tmp_path / "a.gguf"), verbose=False, n_ctx=64, logits_all=True, n_threads=1
    )
    assert theirs.tokenize(TEXTS[name].encode(), add_bos=True, special=True) == ids
    theirs.eval(ids)
    said = []
    while len(said) < count and (not said or said[-1] not in checkpoint.eos_token_ids):
        said.append(int(np.argmax(theirs._scores[-1])))
        theirs.eval(said[-1:])
    assert said == greedy(load(tmp_path / "a.gguf"), ids, len(said))


def test_llama_cpp_has_the_logits_of_an_lfm2_that_is_written_here(tmp_path):
    llama_cpp = pytest.importorskip(
        "llama_cpp", reason="needs llama.cpp itself: pip install llama-cpp-python"
    )
    model = made("lfm2")
    # Of logits around 1: llama.cpp rounds what it multiplies with such weights to 16 bits too.
    model.model.embedding_norm.weight.data *= 0.15
    write(model, tmp_path / "a.gguf")
    save_gguf(load(tmp_path / "a.gguf"), tmp_path / "b.gguf", "f16")
    theirs = llama_cpp.Llama(
        str(tmp_path / "b.gguf"), verbose=False, n_ctx=64, logits_all=True, n_threads=1
    )
    theirs.eval(IDS)
    decoder = make_decoder(load(tmp_path / "b.gguf"))
    ours = np.array([decoder.decode(token).copy() for token in IDS])
    found = np.array(theirs._scores)
    theirs.close()
    np.testing.assert_allclose(found, ours, atol=1e-2)
    assert abs(ours).max() > 0.5


def greedy(checkpoint, ids, count):
    decoder = make_decoder(checkpoint)
    logits, said = decoder.prefill(ids), []
    for _ in range(count):
        said.append(int(logits.argmax()))
        logits = decoder.decode(said[-1])
    return said


def test_the_experts_of_a_file_stay_in_their_blocks(tmp_path):
    model = made("qwen3moe")
    write(model, tmp_path / "a.gguf", Type.Q8_0, kinds={"ffn_up_exps.weight": Type.Q5_1})
    checkpoint = load(tmp_path / "a.gguf")
    weight = checkpoint.tensors["blocks.1.mlp.experts.3.gate_up.weight"]
    assert [part.kind.name for part in weight.parts] == ["Q8_0", "Q5_1"]
    fused = model.state_dict()["model.layers.1.mlp.experts.gate_up_proj"][3].numpy()
    np.testing.assert_array_equal(weight.to_float32(), fused)
    decoder, logits = make_decoder(checkpoint), logits_of(model)
    for place, token in enumerate(IDS):
        np.testing.assert_allclose(decoder.decode(token), logits[place], atol=1e-4)


@pytest.mark.parametrize("more", [{"tie_word_embeddings": True}, {"num_key_value_heads": 2}])
def test_an_olmoe_that_llama_cpp_has_not_is_no_gguf_file(more, tmp_path):
    random_model(t.OlmoeConfig, MODELS["olmoe"][1] | more).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="llama.cpp has no architecture"):
        save_gguf(load(tmp_path), tmp_path / "a.gguf")


def test_experts_whose_weights_sum_to_less_than_1_are_no_qwen3moe(tmp_path):
    write(made("qwen3moe"), tmp_path / "a.gguf")
    checkpoint = load(tmp_path / "a.gguf")
    config = replace(checkpoint.config, norm_topk_prob=False)
    with pytest.raises(UserError, match="llama.cpp has no architecture"):
        save_gguf(replace(checkpoint, config=config), tmp_path / "b.gguf")

"""Quantised safetensors, written here by code of their own, are compared with plain folders."""

import json
import shutil
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from minillm_repl.checkpoint.load_save import load, summarise
from minillm_repl.errors import UserError
from minillm_repl.model.build import build
from minillm_repl.repl.model_loading import ModelLoader

LINEAR = "proj.weight"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A folder of a Llama of random weights."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=160,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    folder = tmp_path_factory.mktemp("plain")
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    return folder


def tensors_of(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


def variant(plain, folder, tensors, **fields):
    """A copy of a folder with other weights, and with these fields of its config."""
    shutil.copytree(plain, folder)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    return folder


def mlx(weight, bits, group, kind):
    """A matrix as MLX packs it, and what that is worth: words, scales, biases, values."""
    rows, inputs = weight.shape
    groups = weight.float().numpy().reshape(rows, -1, group)
    least, most = groups.min(2), groups.max(2)
    as_kind = lambda array: torch.from_numpy(array).to(kind)  # noqa: E731
    scales, biases = as_kind((most - least) / (2**bits - 1)), as_kind(least)
    s, b = (each.float().numpy()[:, :, None] for each in (scales, biases))
    numbers = np.clip(np.round((groups - b) / s), 0, 2**bits - 1)
    values = (numbers * s + b).astype(np.float32).reshape(rows, inputs)
    words = np.zeros((rows, inputs * bits // 32), np.uint64)
    flat = numbers.astype(np.uint64).reshape(rows, -1)
    for column in range(inputs):
        place = column * bits
        words[:, place // 32] += flat[:, column] << np.uint64(place % 32)
    return torch.from_numpy(words.astype(np.uint32)), scales, biases, torch.from_numpy(values)


def mlx_pair(plain, tmp_path, own, **declared):
    """An MLX folder, and the folder of the same values; `own` are settings of single layers."""
    packed, values = {}, {}
    for name, tensor in tensors_of(plain).items():
        layer = name.removesuffix(".weight")
        here = declared | (own.get(layer) or {})
        if not name.endswith((LINEAR, "embed_tokens.weight")) or own.get(layer) is False:
            packed[name], values[name] = tensor.half(), tensor.half().float()
            continue
        words, scales, biases, whole = mlx(tensor, here["bits"], here["group_size"], torch.float16)
        packed |= {name: words, f"{layer}.scales": scales, f"{layer}.biases": biases}
        values[name] = whole
    quantised = variant(plain, tmp_path / "mlx", packed, quantization=declared | own)
    return quantised, variant(plain, tmp_path / "values", values)


def fp8_pair(plain, tmp_path, rows=48, inputs=64, kind=torch.float32):
    """A folder of 8-bit floats with a scale per block, by torch, and that of the same values."""
    packed, values = {}, {}
    for name, tensor in tensors_of(plain).items():
        if not name.endswith(LINEAR):
            packed[name], values[name] = tensor.bfloat16(), tensor.bfloat16().float()
            continue
        height, width = tensor.shape
        grid = [
            [tensor[r : r + rows, c : c + inputs] for c in range(0, width, inputs)]
            for r in range(0, height, rows)
        ]
        scales = torch.tensor([[each.abs().max() / 448 for each in row] for row in grid]).to(kind)
        small, whole = torch.empty_like(tensor, dtype=torch.float8_e4m3fn), tensor.clone()
        for r, row in enumerate(grid):
            for c, each in enumerate(row):
                at = slice(r * rows, (r + 1) * rows), slice(c * inputs, (c + 1) * inputs)
                small[at] = (each / scales[r, c].float()).to(torch.float8_e4m3fn)
                whole[at] = small[at].float() * scales[r, c].float()
        packed |= {name: small, f"{name}_scale_inv": scales}
        values[name] = whole
    declared = {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
        "weight_block_size": [rows, inputs], "modules_to_not_convert": ["lm_head"],
    }  # fmt: skip
    quantised = variant(plain, tmp_path / "fp8", packed, quantization_config=declared)
    return quantised, variant(plain, tmp_path / "values", values)


def assert_same(quantised, values):
    """Same weights bit for bit; the logits of transformers for the folder of the values."""
    ours, expected = load(quantised), load(values)
    assert ours.tensors.keys() == expected.tensors.keys()
    for name, array in expected.tensors.items():
        np.testing.assert_array_equal(ours.tensors[name], array)
    ids = torch.arange(1, 40)[None] * 7 % 160
    theirs = transformers.AutoModelForCausalLM.from_pretrained(values, dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = theirs(ids).logits[0]
        found = build(ours.config, ours.tensors)(ids)[0]
    torch.testing.assert_close(found, wanted, atol=2e-3, rtol=1e-4)
    decoder = ModelLoader(threads=1).prepare(ours).decoder
    logits = torch.from_numpy(decoder.prefill(ids[0].tolist()).copy())
    torch.testing.assert_close(logits, wanted[-1], atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize(("bits", "group"), [(2, 32), (4, 64), (4, 32), (8, 64), (8, 128)])
def test_groups_of_mlx_are_the_numbers_times_their_scale_plus_their_bias(
    plain, tmp_path, bits, group
):
    quantised, values = mlx_pair(plain, tmp_path, {}, bits=bits, group_size=group)
    assert_same(quantised, values)
    assert summarise(quantised).dtype == f"MLX, {bits} bits"
    assert load(quantised).notes[0].startswith(f"the quantised weights (MLX, {bits} bits)")


def test_single_layers_of_mlx_may_have_other_bits_or_none(plain, tmp_path):
    own = {
        "model.embed_tokens": {"bits": 8, "group_size": 32},
        "model.layers.1.mlp.down_proj": {"bits": 8, "group_size": 64, "mode": "affine"},
        "model.layers.0.self_attn.v_proj": False,
    }
    assert_same(*mlx_pair(plain, tmp_path, own, bits=4, group_size=64, mode="affine"))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [(48, 64), (128, 128), (1, 192), (256, 7)])
def test_floats_of_8_bits_are_multiplied_by_the_scale_of_their_block(plain, tmp_path, block, kind):
    assert_same(*fp8_pair(plain, tmp_path, *block, kind))


def test_the_scales_may_lie_in_another_shard(plain, tmp_path):
    quantised, values = mlx_pair(plain, tmp_path, {}, bits=4, group_size=64)
    tensors = tensors_of(quantised)
    (quantised / "model.safetensors").unlink()
    parts = {1: {}, 2: {}}
    for name, tensor in tensors.items():
        parts[1 if name.endswith((".weight", ".biases")) else 2][name] = tensor
    for number, part in parts.items():
        safetensors.torch.save_file(part, quantised / f"model-0000{number}-of-00002.safetensors")
    assert_same(quantised, values)


def test_a_quantised_model_in_another_dtype_and_saved_is_an_ordinary_one(plain, tmp_path):
    from minillm_repl.checkpoint.load_save import save

    quantised, values = mlx_pair(plain, tmp_path, {}, bits=4, group_size=64)
    assert load(quantised, dtype="bfloat16").dtype == "bfloat16"
    save(load(quantised), tmp_path / "saved", folder=True)
    saved = load(tmp_path / "saved")
    assert saved.notes == ()
    for name, array in load(values).tensors.items():
        np.testing.assert_array_equal(saved.tensors[name], array)


WRONG = {
    "a group that does not fit": ({"group_size": 96}, "do not fit"),
    "bits that do not fit": ({"bits": 8}, "do not fit"),
    "a group of 0": ({"group_size": 0}, "group_size 0"),
    "a group that is text": ({"group_size": "64\x1b"}, "group_size 64"),
    "a layer of 3 bits": (
        {"model.layers.0.mlp.up_proj": {"bits": 3, "group_size": 64}},
        "quantised tensor .*up_proj.*bits 3.*GGUF",
    ),
    "bits of another kind": ({"bits": True}, "is quantised"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_quantisation_that_does_not_fit_its_tensors_is_refused(plain, tmp_path, what):
    change, message = WRONG[what]
    quantised, _values = mlx_pair(plain, tmp_path, {}, bits=4, group_size=64)
    config = json.loads((quantised / "config.json").read_text())
    config["quantization"] |= change
    (quantised / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message) as raised:
        load(quantised)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("layers.0.mlp.up_proj.scales", torch.zeros(3, 2), "do not fit"),
        ("layers.0.mlp.up_proj.biases", torch.zeros(256, 2).int(), "must have one of the dtypes"),
        ("layers.0.mlp.up_proj.scales", torch.full((256, 2), torch.inf), "not finite"),
        ("layers.0.mlp.up_proj.weight", torch.zeros(256, dtype=torch.uint32), "do not fit"),
        ("layers.0.mlp.up_proj.scales", None, "up_proj"),
    ],
)
def test_damaged_scales_are_refused(plain, tmp_path, name, tensor, message):
    quantised, _values = mlx_pair(plain, tmp_path, {}, bits=4, group_size=64)
    tensors = tensors_of(quantised)
    tensors.pop(f"model.{name}")
    tensors |= {f"model.{name}": tensor} if tensor is not None else {}
    safetensors.torch.save_file(tensors, quantised / "model.safetensors")
    with pytest.raises(UserError, match=message), warnings.catch_warnings():
        warnings.simplefilter("error")
        load(quantised)

"""Folders that hold no model which opens here, each named for what it is; and the ways to name
one that does.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from minillm_repl.checkpoint.load_save import load, save
from minillm_repl.errors import UserError
from minillm_repl.storage.paths import cached_models, checkpoint_title, find_checkpoint
from tests.test_folders import edited, sharded
from tests.test_huggingface import LLAMA, logits_of, opened, random_ids, random_model

BUFFER = b"\xef\xbb\xbf"  # a byte order mark, as Windows' editors write one


@pytest.fixture(scope="module")
def theirs():
    return random_model(transformers.LlamaConfig, LLAMA)


@pytest.fixture(scope="module")
def original(theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("original") / "model"
    theirs.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    copy = tmp_path / "model"
    copy.mkdir()
    for file in original.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def tensors_of(folder):
    return safetensors.numpy.load_file(folder / "model.safetensors")


def with_tensors(folder, tensors):
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def packed(folder, tensors_of_layer, ending="q_proj.weight"):
    """Put in place of some weights what a quantisation leaves of them."""
    tensors = {}
    for name, array in tensors_of(folder).items():
        layer = name.removesuffix(".weight")
        tensors |= tensors_of_layer(layer) if name.endswith(ending) else {name: array}
    with_tensors(folder, tensors)


def small(kind, *shape):
    return np.zeros(shape or (4, 4), kind)


def renamed(folder, name, other):
    with_tensors(
        folder, {each.replace(name, other): array for each, array in tensors_of(folder).items()}
    )


def only(folder, name, data=b"x" * 100):
    """Leave the description of a model, and other weights."""
    (folder / "model.safetensors").unlink()
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)


def alone(folder, name, tensor):
    """Leave nothing but one file of weights."""
    without_config(folder)
    safetensors.numpy.save_file({tensor: small("f4")}, folder / name)


def adapter(folder, **fields):
    described = {"peft_type": "LORA", "base_model_name_or_path": "some-body/tiny\x1b[31m", "r": 4}
    described = {key: value for key, value in (described | fields).items() if value is not None}
    (folder / "adapter_config.json").write_text(json.dumps(described))
    safetensors.numpy.save_file(
        {"base_model.model.x.lora_A.weight": small("f4")}, folder / "adapter_model.safetensors"
    )


def without_config(folder, *files):
    for file in folder.iterdir():
        file.unlink()
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")


def pipeline(folder):
    without_config(folder, "unet/config.json")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')


def method(name, **more):
    return lambda folder: edited(folder, quantization_config={"quant_method": name, **more})


def left_of(**parts):
    """What a quantisation leaves of a layer: tensors by last names, each a kind and a shape."""
    return lambda layer: {
        f"{layer}.{name.replace('__', '.')}": small(*part) for name, part in parts.items()
    }


LEFT = {
    "GPTQ/AWQ": [
        left_of(qweight=("i4",), scales=("f2",)),
        left_of(qweight=("i4",), qzeros=("i4",), scales=("f2",)),
    ],
    "FP8/compressed-tensors": [
        left_of(weight=("u1", 32, 32), weight_scale_inv=("f4", 1, 1)),
        left_of(weight_packed=("i4",), weight_scale=("f4",)),
    ],
    "bitsandbytes": [
        left_of(weight=("i1", 32, 32), SCB=("f4", 32)),
        left_of(weight=("u1", 512, 1), weight__absmax=("f4", 16)),
    ],
    "MLX": [left_of(weight=("u4", 32, 4), scales=("f2",), biases=("f2",))],
    "EXL2": [left_of(q_weight=("i4",), q_scale=("i4",), q_groups=("i2",), q_invperm=("i2",))],
    "EXL3": [left_of(trellis=("i2",), suh=("f2",), svh=("f2",))],
    "HQQ": [left_of(W_q=("u1",), meta=("f2",))],
    "quanto": [left_of(weight___data=("i1",), weight___scale=("f2",))],
    "AQLM/VPTQ": [
        left_of(codes=("i2",), codebooks=("f2",)),
        left_of(indices=("i4",), centroids=("f2",)),
    ],
}
FOREIGN = {
    "MLX of 3 bits": (
        lambda f: edited(f, quantization={"group_size": 64, "bits": 3}),
        r"is quantised \(MLX, 3 bits\).*GGUF",
    ),
    "MLX of another mode, said twice": (
        lambda f: edited(
            f,
            **{
                f"quantization{end}": {"group_size": 32, "bits": 4, "mode": "mxfp4"}
                for end in ("", "_config")
            },
        ),
        r"is quantised \(MLX, 4 bits\)",
    ),
    "GPTQ": (
        method("gptq", bits=4, group_size=128),
        r"is quantised \(GPTQ, 4 bits\).*--quant int8",
    ),
    "AWQ": (method("awq", bits=4), r"is quantised \(AWQ, 4 bits\)"),
    "AWQ of old": (
        lambda f: edited(f, quantization_config={"w_bit": 4, "quant_method": "awq"}),
        r"\(AWQ, 4 bits\)",
    ),
    "FP8 without blocks": (method("fp8", weight_block_size=None), r"is quantised \(FP8\)"),
    "compressed tensors": (
        method("compressed-tensors", format="float-quantized"),
        r"\(compressed-tensors\)",
    ),
    "bitsandbytes": (method("bitsandbytes", load_in_4bit=True), r"\(bitsandbytes, 4 bits\)"),
    "EXL2": (method("exl2", bits=4.25), r"\(EXL2, 4.25 bits\)"),
    "a method with a code in its name": (method("\x1b[31mevil"), r"is quantised \(.*evil\)"),
    "PEFT": (
        lambda f: (without_config(f), adapter(f)),
        r"is a PEFT adapter \(LORA\) for some-body/tiny.*merge_and",
    ),
    "PEFT with a copy of the config": (
        lambda f: ((f / "model.safetensors").unlink(), adapter(f)),
        r"is a PEFT adapter \(LORA\)",
    ),
    "PEFT in a pickle": (
        lambda f: (
            without_config(f),
            adapter(f, peft_type="IA3"),
            (f / "adapter_model.safetensors").unlink(),
        ),
        "IA3",
    ),
    "PEFT that says nothing": (
        lambda f: (without_config(f), (f / "adapter_config.json").write_text("[")),
        r"is a PEFT adapter \(\?\) for \?",
    ),
    "GGUF beside a config": (
        lambda f: only(f, "a-Q4.gguf"),
        r"weights are a GGUF file.*\(a-Q4.gguf\)",
    ),
    "GGUF alone": (
        lambda f: without_config(f, "README.md", "A.GGUF"),
        r"weights are a GGUF file.*\(A.GGUF\)",
    ),
    "an adapter of MLX": (
        lambda f: (
            without_config(f),
            adapter(f, peft_type=None, fine_tune_type="lora", model="some/tiny"),
        ),
        r"is an MLX adapter for some/tiny, not a complete model: .* `mlx_lm.fuse`$",
    ),
    "an adapter of MLX that says nothing": (
        lambda f: alone(f, "adapters.safetensors", "model.layers.0.self_attn.q_proj.lora_a"),
        r"is a LoRA adapter, not a complete model: adapters.safetensors holds "
        r"model.layers.0.*lora_a$",
    ),
    "an adapter of LyCORIS": (
        lambda f: alone(f, "style.safetensors", "lycoris_x.lokr_w1"),
        r"is a LoRA adapter, .*style.safetensors holds",
    ),
    "the folder of a run that made adapters": (
        lambda f: (without_config(f, "checkpoint-9/x"), adapter(f / "checkpoint-9")),
        r"is a folder without a model; checkpoint-9 in it is a PEFT adapter \(LORA\) for some-body",
    ),
    "OpenVINO": (
        lambda f: only(f, "openvino_model.bin"),
        r"weights are an OpenVINO model \(openvino_model.bin\)",
    ),
    "TensorRT": (
        lambda f: only(f, "rank0.engine"),
        r"weights are a TensorRT engine \(rank0.engine\)",
    ),
    "Core ML": (lambda f: only(f, "model.mlpackage"), r"weights are a Core ML model"),
    "ONNX in a folder of its own": (
        lambda f: only(f, "onnx/model_q4.onnx"),
        r"an ONNX file \(model_q4.onnx\)",
    ),
    "a run on several machines": (
        lambda f: only(f, "pytorch_model_fsdp_0/__0_0.distcp"),
        r"a distributed PyTorch training checkpoint \(__0_0.distcp\)",
    ),
    "a run of DeepSpeed": (
        lambda f: only(f, "global_step9/mp_rank_00_model_states.pt"),
        r"pickled weights \(mp_rank_00_.*can run code",
    ),
    "a config of another library": (
        lambda f: edited(f, model_type=None),
        r"config.json has no model_type; supported types: gpt2",
    ),
    "ONNX": (lambda f: only(f, "model.onnx"), r"weights are an ONNX file \(model.onnx\)"),
    "Flax": (lambda f: only(f, "flax_model.msgpack"), r"weights are a Flax file"),
    "TensorFlow": (lambda f: only(f, "tf_model.h5"), r"weights are a TensorFlow HDF5 file"),
    "a pickle": (
        lambda f: only(f, "pytorch_model-00001-of-00002.bin"),
        r"pickled weights \(pytorch_model-0.*can run code",
    ),
    "a pickle without a config": (
        lambda f: without_config(f, "ckpt.pt"),
        r"pickled weights \(ckpt.pt\), which can run code",
    ),
    "Meta's own": (
        lambda f: without_config(f, "params.json", "consolidated.00.pth"),
        r"params.json.*config.json",
    ),
    "weights without a config": (
        lambda f: (f / "config.json").unlink(),
        r"without the config.json that gives the sizes of model.safetensors",
    ),
    "the folder of a run": (
        lambda f: without_config(f, "checkpoint-9/config.json"),
        r"without a config.json; open checkpoint-9 in it, which has one",
    ),
    "nothing": (without_config, r"is a folder without config.json: it contains no model"),
    "a config alone": (
        lambda f: (f / "model.safetensors").unlink(),
        r"no model.safetensors, only a description of the model",
    ),
    "weights of another name": (
        lambda f: (f / "model.safetensors").rename(f / "weights.safetensors"),
        r"but weights.safetensors: open that file by its name",
    ),
    "a diffusion pipeline": (
        pipeline,
        r"a diffusion pipeline \(StableDiffusionPipeline\), not a language model",
    ),
    "a part of one": (
        lambda f: edited(f, model_type=None, _class_name="UNet2DConditionModel"),
        r"UNet2DConditionModel, part of a",
    ),
    "an encoder": (
        lambda f: edited(f, model_type="bert"),
        r"is an encoder \(bert\), .*unsupported model type 'bert'; supported types: gpt2",
    ),
    "another encoder": (
        lambda f: edited(f, model_type="xlm-roberta"),
        r"is an encoder \(xlm-roberta\)",
    ),
    "an encoder with a decoder": (
        lambda f: edited(f, model_type="t5", is_encoder_decoder=True),
        r"an encoder-decoder model \(t5\)",
    ),
    "a model of pictures": (
        lambda f: edited(f, model_type="clip"),
        r"a model for images or sound \(clip\)",
    ),
    "a classifier": (
        lambda f: (
            edited(f, architectures=["LlamaForSequenceClassification"]),
            renamed(f, "lm_head", "score"),
        ),
        r"without an output head \(LlamaForSequenceClassification\), .* and has no tensor "
        r"lm_head.weight",
    ),
    "one that embeds texts": (
        lambda f: (
            edited(f, architectures=["MistralModel"], model_type="mistral"),
            renamed(f, "lm_head", "linear"),
        ),
        r"without an output head \(MistralModel\), .* and has no tensor",
    ),
    "a pointer": (
        lambda f: (f / "model.safetensors").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
        ),
        r"model.safetensors is a Git LFS pointer; run `git lfs pull`",
    ),
    "a config that is a pointer": (
        lambda f: (f / "config.json").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "is a Git LFS pointer",
    ),
    "a template that is a pointer": (
        lambda f: (f / "chat_template.jinja").write_text(
            "version https://git-lfs.github.com/spec/v1\n"
        ),
        r"chat_template.jinja is a Git LFS pointer",
    ),
    "a config of UTF-16": (
        lambda f: (f / "config.json").write_bytes((f / "config.json").read_text().encode("utf-16")),
        "is not UTF-8 text",
    ),
    "an empty config": (lambda f: (f / "config.json").write_text("\n"), "config.json is"),
}


@pytest.mark.parametrize(
    ("how", "left"), [(how, each) for how, several in LEFT.items() for each in several]
)
def test_quantised_weights_are_known_by_their_tensors_too(how, left, folder):
    packed(folder, left)
    with pytest.raises(
        UserError,
        match=rf"is quantised \({how}\), in a way that cannot be opened. Use a GGUF file",
    ):
        load(folder)


@pytest.mark.parametrize("what", FOREIGN)
def test_a_folder_is_named_for_what_it_is(what, folder):
    change, message = FOREIGN[what]
    change(folder)
    with pytest.raises(UserError, match=message) as raised:
        load(folder)
    assert str(raised.value).count(str(folder)) == 1
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 500


HEADS = {
    "a.safetensors": (b"GGUF\x01\x00\x00\x00", "a GGUF file of version 1"),
    "b.bin": (b"lmgg\x00\x00", "a GGML file"),
    "c.onnx": (b"\x08\x07\x12\x07pytorch\x1a\x052.1.0", "an ONNX file"),
    "d.bin": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "a pickle"),
    "e.pt": (b"PK\x03\x04\x00\x00", "a ZIP archive"),
    "f.h5": (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    "g.llamafile": (b"MZqFpD='\n", "a program"),
    "h.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_file_is_named_for_what_it_begins_with(name, tmp_path):
    data, message = HEADS[name]
    (tmp_path / name).write_bytes(data + bytes(100))
    with pytest.raises(UserError, match=f"{name} is {message}"):
        load(tmp_path / name)


def test_an_adapter_is_named_whichever_of_its_files_is(folder):
    without_config(folder)
    adapter(folder)
    for file in sorted(folder.iterdir()):
        with pytest.raises(UserError, match="is a PEFT adapter"):
            load(file)


def test_an_adapter_that_lies_alone_or_in_a_models_folder_is_named(folder, tmp_path):
    adapter(folder)
    with pytest.raises(UserError, match=r"fits no matrix of its model: base_model.model.x.lora_A"):
        load(folder / "adapter_model.safetensors")
    for name in ("base_model.model.x.lora_A.weight", "lora_unet_x.lora_down.weight"):
        safetensors.numpy.save_file({name: small("f4")}, tmp_path / "alone.safetensors")
        with pytest.raises(UserError, match=f"is a LoRA adapter, not a model: it contains {name}"):
            load(tmp_path / "alone.safetensors")


def test_an_adapter_beside_its_model_is_told_and_not_applied(folder, original):
    adapter(folder)
    [note] = load(folder).notes
    assert note.startswith(
        "the adapter next to the model is not applied: a PEFT adapter (LORA) for some-body/tiny"
    )
    assert note.isprintable()


# -- Texts


@pytest.mark.parametrize("before", [b"", BUFFER, b"\r\n \t"])
@pytest.mark.parametrize("after", [b"", b"\r\n\r\n", b"  \n\t\n"])
def test_a_text_may_have_a_byte_order_mark_other_line_ends_and_blank_ends(
    before, after, folder, theirs
):
    sharded(folder)
    (folder / "tokenizer_config.json").write_text(
        '{\n "bos_token": "<s>",\n "chat_template": "{{ messages }}"\n}'
    )
    for file in folder.glob("*.json"):
        file.write_bytes(before + file.read_bytes().replace(b"\n", b"\r\n") + after)
    checkpoint, ours = opened(folder)
    ids = random_ids(9)
    torch.testing.assert_close(logits_of(ours, ids), logits_of(theirs, ids), rtol=0, atol=1e-4)
    assert checkpoint.chat_template.source == "{{ messages }}"
    (folder / "chat_template.jinja").write_bytes(BUFFER + b"hi{{ messages }}")
    assert load(folder).chat_template.source == "hi{{ messages }}"


# -- Ways to name a model


def test_any_file_of_a_folder_stands_for_the_model(folder, original):
    sharded(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text("{}")
    (folder / "tokenizer.json").unlink()
    expected = load(original).tensors
    for name in (
        "config.json",
        "model.safetensors.index.json",
        "a.safetensors",
        "tokenizer_config.json",
        "",
    ):
        found = find_checkpoint(str(folder / name))
        assert checkpoint_title(found) == "model"
        checkpoint = load(found)
        assert checkpoint.path == folder
        assert all(
            np.array_equal(checkpoint.tensors[each], array) for each, array in expected.items()
        )


def test_parts_whose_index_is_lost_are_found_by_their_names(folder, theirs):
    theirs.save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model.safetensors").unlink(missing_ok=True)
    parts = sorted(folder.glob("*-of-*.safetensors"))
    assert len(parts) > 2
    ids = random_ids(9)
    for path in (folder, parts[1]):
        torch.testing.assert_close(
            logits_of(opened(path)[1], ids), logits_of(theirs, ids), rtol=0, atol=1e-4
        )
    parts[-1].unlink()
    with pytest.raises(UserError, match=f"has no {parts[-1].name}, one of its shards"):
        load(folder)


def test_paths_may_end_in_a_slash_begin_at_home_be_links_or_look_like_files(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("model")
    folder.rename(tmp_path / "a.safetensors")
    (tmp_path / "model").symlink_to("a.safetensors")
    for name in (
        "a.safetensors",
        "a.safetensors/",
        "a",
        "~/a.safetensors/",
        "~/link",
        "link/",
        "./model",
        "'~/link/'",
        "a.safetensors/config.json",
        "link/model.safetensors",
    ):
        assert load(find_checkpoint(name)).config.n_layers == 3
    assert checkpoint_title(find_checkpoint("a")) == "a"


VARIABLES = {
    "HF_HUB_CACHE": ("HF_HUB_CACHE", "", ""), "the older name": ("HUGGINGFACE_HUB_CACHE", "", ""),
    "HF_HOME": ("HF_HOME", "", "hub"), "XDG_CACHE_HOME": ("XDG_CACHE_HOME", "", "huggingface/hub"),
    "HOME": ("HOME", "", ".cache/huggingface/hub"), "a tilde": ("HF_HOME", "~/", "hub"),
    "a variable in it": ("HF_HUB_CACHE", "$OTHER/", ""),
}  # fmt: skip


def in_cache(original, hub, name, commit, model=True):
    """Put a model where huggingface_hub does: files by content, links to them by name."""
    folder = hub / name
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir(exist_ok=True)
    for file in original.iterdir() if model else [original / "config.json"]:
        blob = folder / "blobs" / f"{commit}-{file.name}"
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    return snapshot


@pytest.mark.parametrize("how", VARIABLES)
def test_the_cache_lies_where_the_library_of_hugging_face_has_it(
    how, original, tmp_path, monkeypatch
):
    variable, before, below = VARIABLES[how]
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OTHER", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    where = "" if variable == "HOME" else "there"
    monkeypatch.setenv(variable, f"{before}{where}" if before else str(tmp_path / where))
    hub = tmp_path / where / below
    snapshot = in_cache(original, hub, "models--gpt2", "a" * 40)
    asked = subprocess.run(
        [
            sys.executable,
            "-c",
            "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert asked.stdout.strip() == str(hub)
    assert cached_models() == {"gpt2": snapshot}
    assert find_checkpoint("gpt2") == snapshot
    assert checkpoint_title(snapshot) == "gpt2"


def test_the_snapshot_that_main_names_is_the_model(original, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    name = "models--some-body--tiny-1.0"
    main = in_cache(original, tmp_path / "hub", name, "b" * 40)
    newer = in_cache(original, tmp_path / "hub", name, "a" * 40)
    assert cached_models() == {"some-body/tiny-1.0": newer}
    (tmp_path / "hub" / name / "refs" / "main").write_text("b" * 40 + "\n")
    assert cached_models() == {"some-body/tiny-1.0": main}
    (tmp_path / "my").symlink_to(main)
    (tmp_path / "all").symlink_to(tmp_path / "hub" / name)
    for asked in (
        "some-body/tiny-1.0",
        "some-body/tiny-1.0/",
        f"hub/{name}",
        "my",
        "my/config.json",
    ):
        assert load(find_checkpoint(asked)).config.n_layers == 3
        assert checkpoint_title(find_checkpoint(asked)) == "some-body/tiny-1.0"
    for wrong in ("gone", "../..", "", "x" * 300, "\x00"):  # then the newest is as good as any
        (tmp_path / "hub" / name / "refs" / "main").write_text(wrong)
        assert find_checkpoint("some-body/tiny-1.0") == newer
    (tmp_path / "hub" / name / "refs" / "main").unlink()
    os.mkfifo(tmp_path / "hub" / name / "refs" / "main")
    assert find_checkpoint("some-body/tiny-1.0") == newer


def test_a_snapshot_without_weights_says_so(original, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = in_cache(original, tmp_path, "models--gpt2", "c" * 40, model=False)
    with pytest.raises(
        UserError, match="has no model.safetensors, only a description of the model"
    ):
        load(find_checkpoint("gpt2"))
    (snapshot / "model.safetensors").symlink_to("../../blobs/never-fetched")
    with pytest.raises(
        UserError,
        match="model.safetensors is a link to ../../blobs/never-fetched, which does not exist",
    ):
        load(find_checkpoint("gpt2"))


# -- Names to save under


@pytest.mark.parametrize(
    "ending",
    ["gguf", "GGUF", "bin", "pt", "pth", "ckpt", "onnx", "h5", "npz", "json", "zip", "txt"],
)
def test_nothing_is_saved_under_a_name_of_another_format(ending, nalssi, tmp_path):
    with pytest.raises(
        UserError,
        match=rf"saved as safetensors, not .{ending}. Use my.v1.safetensors, or my.v1/ for",
    ):
        save(nalssi, tmp_path / f"my.v1.{ending}")
    assert list(tmp_path.iterdir()) == []
    for name in ("my.safetensors", "my.v2", "my"):
        save(nalssi, tmp_path / name)
        assert load(tmp_path / name).config == nalssi.config
    save(nalssi, tmp_path / f"folder.{ending}", folder=True)
    assert load(tmp_path / f"folder.{ending}").config.vocab_size == nalssi.config.vocab_size


def run(*arguments, script=""):
    command = [sys.executable, "-m", "minillm_repl", *map(str, arguments)]
    return subprocess.run(command, input=script, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_program_says_so_before_any_work(tmp_path):
    (tmp_path / "text.txt").write_text("abcd " * 200)
    done = run("--ckpt", tmp_path / "new.gguf", "--train", tmp_path / "text.txt", "--steps", "1")
    assert (done.returncode, done.stdout) == (1, "")
    assert "not .gguf. Use new.safetensors" in done.stderr
    for more in (("-p", "x"), ()):
        assert run("--ckpt", tmp_path / "new.gguf", *more).stderr.endswith(
            "new.gguf does not exist\n"
        )
    done = run(
        "--ckpt",
        "nalssi",
        script=f":save {tmp_path}/x.bin\n:save {tmp_path}/x.bin adapter\n:save {tmp_path}/x\n",
    )
    assert "not .bin. Use x.safetensors" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.txt", "x.safetensors"]


@pytest.mark.slow
def test_what_is_done_otherwise_than_the_files_say_is_told_once(folder):
    edited(folder, tie_word_embeddings=True)
    one = run("--ckpt", folder, "-p", "1 2 3", "-n", "2")
    assert one.returncode == 0
    assert "tensor" not in one.stdout
    script = f"1 2\n3 4\n:load {folder}\n1 2\n:model\n"
    more = run("--ckpt", folder, "-n", "1", script=script)
    note = (
        "config.json ties the unembedding to the embedding, but the file has a separate one, "
        "lm_head.weight: that one is used"
    )
    told = [" ".join(text.split()).count(f"! {note}") for text in (one.stderr, more.stderr)]
    assert told == [1, 2]  # and again when it is opened again
    assert note in " ".join(more.stdout.split())

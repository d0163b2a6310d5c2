"""The backends, which run a model behind the protocol `Decoder`, and the choice between them."""

from minillm_repl.checkpoint import Checkpoint
from minillm_repl.errors import UserError
from minillm_repl.generate import Decoder
from minillm_repl.kernels.library import load_library
from minillm_repl.language import _
from minillm_repl.tokenizer.truncation import find_bos_token_id

_QUANT_BITS = {"off": 0, "int8": 8, "int4": 4}


def make_decoder(
    checkpoint: Checkpoint,
    device: str = "auto",
    context_length: int = 0,
    *,
    threads: int = 0,
    quant: str = "off",
    kernels: str = "auto",
) -> Decoder:
    """Return the decoder for a device: the C kernels on the CPU, or torch.

    `device` is auto, cpu, cuda or mps. The value auto is the CPU, where models of this size answer
    fastest. `context_length` limits the tokens that the model sees at once; 0 is all it allows.
    `threads` 0 chooses. `quant` int8 keeps all matrices in 8 bits, int4 those of the layers in 4.
    `kernels` is a variant of the C library, auto or off. Raises UserError if the device or the
    variant does not exist here, or if `quant` needs kernels and there are none.
    """
    decoder = _select_decoder(checkpoint, device, threads, quant, kernels)
    decoder.context_length = min(context_length or decoder.context_length, decoder.context_length)
    decoder.bos_token_id = find_bos_token_id(checkpoint.tokenizer)
    return decoder


def _select_decoder(
    checkpoint: Checkpoint, device: str, threads: int, quant: str, kernels: str
) -> Decoder:
    backend_details = f"--device {device}"
    if device in ("auto", "cpu"):
        library = load_library(kernels)
        if library.functions is not None:
            from minillm_repl.generate.backends.kernels import KernelDecoder

            return KernelDecoder(checkpoint, library, threads, _QUANT_BITS[quant])
        device, backend_details = "cpu", library.reason
    if quant != "off":
        raise UserError(
            _(
                "--quant {quant} needs the C kernels, but this model runs in torch "
                "({why}): use --quant off",
                quant=quant,
                why=backend_details,
            )
        )
    from minillm_repl.generate.backends.torch import TorchDecoder
    from minillm_repl.model.build import build, pick_device

    # Blocks stay in this process's memory; another device gets the same values in float32.
    tensors = checkpoint.tensors if device == "cpu" else checkpoint.arrays()
    return TorchDecoder(
        build(checkpoint.config, tensors).to(pick_device(device)),
        backend_details=backend_details,
    )

"""The backends, which run a model behind the protocol `Decoder`, and the choice between them."""

from minillm_repl.checkpoint.checkpoint import Checkpoint
from minillm_repl.errors import UserError
from minillm_repl.generate.decoder import Decoder
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.tokenizer.truncation import find_bos_token_id

_QUANT_BITS = {"off": 0, "int8": 8, "int4": 4}


def make_decoder(
    checkpoint: Checkpoint,
    device: str = "auto",
    context_length: int = 0,
    *,
    threads: int = 0,
    quant: str = "off",
) -> Decoder:
    """Return the decoder for a device: compiled by numba on the CPU where numba works, else torch.

    `device` is auto, cpu, cuda or mps. The value auto is the CPU, where models of this size answer
    fastest. `context_length` limits the tokens that the model sees at once; 0 is all it allows.
    `threads` 0 chooses. `quant` int8 keeps all matrices in 8 bits, int4 those of the layers in 4.
    Raises UserError if the device does not exist, or if `quant` needs numba and numba fails.
    """
    decoder = _select_decoder(checkpoint, device, threads, quant)
    decoder.context_length = min(context_length or decoder.context_length, decoder.context_length)
    decoder.bos_token_id = find_bos_token_id(checkpoint.tokenizer)
    return decoder


def _select_decoder(checkpoint: Checkpoint, device: str, threads: int, quant: str) -> Decoder:
    backend_details = f"--device {device}"
    if device in ("auto", "cpu"):
        try:
            return _compiled_decoder(checkpoint, threads, quant)
        except (UserError, MemoryError):
            raise  # torch would fail in the same way
        # Whatever fails in numba, torch can run the model.
        except Exception as error:  # noqa: BLE001
            message = safe_line(str(error).strip().partition("\n")[0])
            backend_details = _(
                "numba does not work here: {error:.100}", error=message or type(error).__name__
            )
        device = "cpu"
    if quant != "off":
        raise UserError(
            _(
                "--quant {quant} needs the compiled decoder, but this model runs in torch "
                "({why}): use --quant off",
                quant=quant,
                why=backend_details,
            )
        )
    from minillm_repl.generate.backends.torch import TorchDecoder
    from minillm_repl.model.build import build
    from minillm_repl.model.device import pick_device

    return TorchDecoder(
        build(checkpoint.config, checkpoint.tensors).to(pick_device(device)),
        backend_details=backend_details,
    )


def _compiled_decoder(checkpoint: Checkpoint, threads: int, quant: str) -> Decoder:
    from minillm_repl.generate.backends.compiled.decoder import CompiledDecoder

    return CompiledDecoder(checkpoint, threads, _QUANT_BITS[quant])

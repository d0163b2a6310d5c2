"""The one place that makes a tokenizer from what a native checkpoint says of it."""

from typing import Any

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.tokenizer.base import Tokenizer
from minillm_repl.tokenizer.character import CharacterTokenizer, IdTokenizer


def tokenizer_from_json(data: Any) -> Tokenizer:
    """Make the tokenizer that a checkpoint describes.

    Raises UserError if it describes none that is known here.
    """
    match data:
        case {"type": "character", "normalization": "NFC", "characters": str(characters)}:
            specials = data.get("specials", [])
            if (
                isinstance(specials, list)
                and len(specials) <= 1_000
                and all(isinstance(name, str) for name in specials)
            ):
                return CharacterTokenizer(characters, specials)
        case {"type": "ids", "size": int(size)} if 0 < size <= 2_000_000:
            return IdTokenizer(size)
        case {
            "type": "subword",
            "size": int(size),
            "names": dict(names),
            "description": dict(description),
        } if 0 < size <= 2_000_000 and all(isinstance(name, str) for name in names.values()):
            from minillm_repl.tokenizer.subword import SubwordTokenizer

            return SubwordTokenizer(description, names, size)
    raise UserError(_("its tokenizer type is not known here; a newer minillm-repl may support it"))

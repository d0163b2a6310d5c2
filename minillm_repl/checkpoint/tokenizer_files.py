"""The tokenizer, chat template and end tokens of a Hugging Face folder."""

from collections.abc import Iterator, Mapping
from typing import Any

from minillm_repl.checkpoint import ChatTemplate, foreign
from minillm_repl.checkpoint.folder import Folder
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config import AnyConfig
from minillm_repl.safetext import safe_line
from minillm_repl.storage.files import parse_json
from minillm_repl.tokenizer import Tokenizer
from minillm_repl.tokenizer.description import add_tokens, added_token, with_bos_token
from minillm_repl.tokenizer.ids import IdTokenizer
from minillm_repl.tokenizer.library import BYTE_LEVEL_CLASSES, byte_level_bpe
from minillm_repl.tokenizer.subword import SubwordTokenizer

TOKENIZER, SETTINGS, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
GENERATION = "generation_config.json"
_ROLES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
# The roles of one model; the second name is older.
_EXTRA_ROLE_KEYS = ("model_specific_special_tokens", "extra_special_tokens")
_ENDOFTEXT = "<|endoftext|>"  # GPT-2's start token, if a file names none


def read_tokenizer(folder: Folder, config: AnyConfig) -> Tokenizer:
    """Return a folder's tokenizer; without one, tokens are numbers. Raises UserError."""
    declared = _special_token_fields(folder)
    try:
        text = folder.text(TOKENIZER)
        has_merges = text is None
        description: Mapping[str, Any] | None
        if text is None:
            description = _from_merges(folder, declared)
        else:
            description = parse_json(text, safe_line(str(folder.path / TOKENIZER)))
        if description is None:
            return IdTokenizer(config.vocab_size)  # only weights
        if not isinstance(description, dict):
            raise UserError(_("it is not a JSON object"))
        roles = _contents(_role_values(declared))
        names, as_stored = _added_token_names(description), description.get("added_tokens")
        description = add_tokens(description, _added_tokens(folder, declared, names))
        # A tokenizer.json itself has the start token.
        if has_merges and declared.get("add_bos_token") is True:
            description = with_bos_token(description, roles.get("bos_token", _ENDOFTEXT))
        if has_merges or description.get("added_tokens") != as_stored:
            text = None  # the other files have changed it
        return SubwordTokenizer(description, roles, config.vocab_size, text or "")
    except UserError as error:
        raise UserError(
            _("the tokenizer of {name}: {error}", name=folder.name, error=error)
        ) from None


def read_chat_template(folder: Folder) -> ChatTemplate | None:
    """Return a folder's chat template, or None. Raises UserError."""
    declared = _special_token_fields(folder)
    source: Any = folder.text(TEMPLATE)
    if source is None:
        source = declared.get("chat_template")
    if isinstance(source, list):  # several templates with names
        named = {
            each.get("name"): each.get("template") for each in source if isinstance(each, dict)
        }
        source = named.get("default")
    if not isinstance(source, str) or not source.strip():
        return None
    return ChatTemplate(source, _contents(_role_values(declared)))


def read_eos_token_ids(folder: Folder, config: AnyConfig, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the tokens that end a text or a turn, each once."""
    declared = folder.fields(GENERATION).get(
        "eos_token_id", folder.config_fields.get("eos_token_id")
    )
    candidates: list[Any] = list(declared) if isinstance(declared, list) else [declared]
    # The tokenizer's end token ends a text too, even if generation_config.json names another one.
    if isinstance(tokenizer, SubwordTokenizer):
        candidates.append(tokenizer.token_to_id(tokenizer.special_tokens_map.get("eos_token", "")))
    eos_token_ids = (
        token for token in candidates if type(token) is int and 0 <= token < config.vocab_size
    )
    return tuple(dict.fromkeys(eos_token_ids))


def _special_token_fields(folder: Folder) -> dict[str, Any]:
    """Return the declarations of special tokens.

    Older folders have a file for them, which goes before tokenizer_config.json there.
    """
    settings = folder.fields(SETTINGS)
    legacy = folder.fields("special_tokens_map.json")
    if "added_tokens_decoder" in settings:  # a newer folder
        return {**legacy, **settings}
    return {**settings, **legacy}


def _role_values(declared: Mapping[str, Any]) -> dict[str, Any]:
    """Return the special tokens by role, each as text or as a JSON object with flags.

    A model may have roles of its own, after the usual ones.
    """
    extra = dict[str, Any]()
    for key in _EXTRA_ROLE_KEYS:
        if isinstance(declared.get(key), dict):
            extra |= declared[key]
    named = {**declared, **extra}
    extra_roles = [role for role in named if role.endswith("_token") and role not in _ROLES]
    extra_roles += [role for role in extra if role not in (*_ROLES, *extra_roles)]
    return {role: named[role] for role in (*_ROLES, *extra_roles) if _content(named.get(role))}


def _contents(values: Mapping[str, Any]) -> dict[str, str]:
    return {role: _content(value) for role, value in values.items()}


def _content(value: Any) -> str:
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else ""


def _added_token_names(description: Mapping[str, Any]) -> set[str]:
    """Return the names of the added tokens of a description."""
    entries = description.get("added_tokens")
    return {
        _content(entry)
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict)
    }


def _added_tokens(
    folder: Folder, declared: Mapping[str, Any], known_names: set[str]
) -> Iterator[dict[str, Any]]:
    """Yield the added tokens that files beside tokenizer.json declare, in order of ids."""
    roles = list(_role_values(declared).values())
    extra = declared.get("extra_special_tokens") or declared.get("additional_special_tokens")
    special = [*roles, *(extra if isinstance(extra, list) else [])]
    decoder = declared.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        entries = [
            # An id has at most 9 digits.
            (int(key), each)
            for key, each in decoder.items()
            if key.isdecimal() and len(key) < 10
        ]
    else:
        named = {_content(each) for each in special}
        listed = folder.fields("added_tokens.json")
        # Not normalised: a chat template writes the name, and a normaliser could put a space there.
        entries = [
            (token, {"content": name, "special": name in named, "normalized": False})
            for name, token in listed.items()
            if type(token) is int and name not in known_names
        ]
    # A name is added once, with the flags of the first declaration.
    yielded = set(known_names)
    for _token, each in sorted(entries, key=lambda entry: entry[0]):
        if isinstance(each, dict) and _content(each):
            yielded.add(_content(each))
            yield added_token(_content(each), each)
    # Then the special tokens that no list declares, in the order of their roles.
    for each in special:
        if _content(each) and _content(each) not in yielded:
            yielded.add(_content(each))
            yield added_token(_content(each), each if isinstance(each, dict) else {}, special=True)


def _from_merges(folder: Folder, declared: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the description of vocab.json and merges.txt; None without the two.

    Raises UserError if there is only another vocabulary file, which this program cannot read.
    """
    vocabulary, merges = folder.json("vocab.json"), folder.text("merges.txt")
    if vocabulary is None or merges is None:
        other = safe_line(foreign.find_vocabulary_file(folder.path))
        if other:
            raise UserError(
                _(
                    "{file:.80} alone is not enough; tokenizer.json is needed, or "
                    "vocab.json with merges.txt",
                    file=other,
                )
            )
        return None
    is_qwen = str(folder.config_fields.get("model_type")).startswith("qwen")
    # Without a class in the files, the model type decides.
    usual = "Qwen2Tokenizer" if is_qwen else BYTE_LEVEL_CLASSES[0]
    kind = str(declared.get("tokenizer_class") or usual)
    if kind.removesuffix("Fast") not in BYTE_LEVEL_CLASSES:
        raise UserError(
            _(
                "vocab.json and merges.txt of a {kind:.40} need a {tokenizer}",
                kind=safe_line(kind),
                tokenizer=TOKENIZER,
            )
        )
    if not isinstance(vocabulary, dict) or not all(
        type(token) is int for token in vocabulary.values()
    ):
        raise UserError(_("vocab.json is not a map from tokens to ids"))
    space = declared.get("add_prefix_space") is True
    return byte_level_bpe(
        vocabulary, merges, tokenizer_class=kind.removesuffix("Fast"), add_prefix_space=space
    )

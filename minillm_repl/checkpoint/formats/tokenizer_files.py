"""The tokenizer and chat template of a Hugging Face folder: all that its files say of tokens."""

from collections.abc import Iterator, Mapping
from typing import Any

from minillm_repl.checkpoint.checkpoint import ChatTemplate
from minillm_repl.checkpoint.formats import foreign
from minillm_repl.checkpoint.formats.folder import Folder
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config import AnyConfig
from minillm_repl.safetext import safe_line
from minillm_repl.tokenizer.base import Tokenizer
from minillm_repl.tokenizer.character import IdTokenizer
from minillm_repl.tokenizer.description import add_tokens, added_token, with_bos_token
from minillm_repl.tokenizer.library import BYTE_LEVEL_CLASSES, byte_level_bpe
from minillm_repl.tokenizer.subword import SubwordTokenizer

TOKENIZER, SETTINGS, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
_ROLES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
# a model may have some; an older name
_EXTRA_ROLE_KEYS = ("model_specific_special_tokens", "extra_special_tokens")
_ENDOFTEXT = "<|endoftext|>"  # GPT-2's start and end, where nothing is said of them


def read_tokenizer(folder: Folder, config: AnyConfig) -> Tokenizer:
    """Read a folder's tokenizer; without one, tokens are numbers. Raises UserError."""
    said = _special_token_fields(folder)
    try:
        description = folder.json(TOKENIZER)
        merged = description is None
        if merged:
            description = _from_merges(folder, said)
        if description is None:
            return IdTokenizer(config.vocab_size)  # bare weights, as researchers save them
        if not isinstance(description, dict):
            raise UserError(_("it is not a JSON object"))
        roles = _contents(_role_values(said))
        description = add_tokens(
            description, _added_tokens(folder, said, _added_token_names(description))
        )
        # a tokenizer.json says itself what is put before a text
        if merged and said.get("add_bos_token") is True:
            description = with_bos_token(description, roles.get("bos_token", _ENDOFTEXT))
        return SubwordTokenizer(description, roles, config.vocab_size)
    except UserError as error:
        raise UserError(
            _("the tokenizer of {name}: {error}", name=folder.name, error=error)
        ) from None


def read_chat_template(folder: Folder) -> ChatTemplate | None:
    """Read a folder's chat template, if it has one. Raises UserError."""
    said = _special_token_fields(folder)
    source: Any = folder.text(TEMPLATE)
    if source is None:
        source = said.get("chat_template")
    if isinstance(source, list):  # several, each with a name
        named = {
            each.get("name"): each.get("template") for each in source if isinstance(each, dict)
        }
        source = named.get("default")
    return (
        ChatTemplate(source, _contents(_role_values(said)))
        if isinstance(source, str) and source.strip()
        else None
    )


def read_eos_token_ids(folder: Folder, config: AnyConfig, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the tokens that end a text or a turn."""
    said = folder.fields("generation_config.json").get(
        "eos_token_id", folder.config_fields.get("eos_token_id")
    )
    eos_token_ids: list[Any] = said if isinstance(said, list) else [said]
    if isinstance(tokenizer, SubwordTokenizer):
        eos_token_ids = [
            *eos_token_ids,
            tokenizer.token_to_id(tokenizer.special_tokens_map.get("eos_token", "")),
        ]
    known = (
        token for token in eos_token_ids if type(token) is int and 0 <= token < config.vocab_size
    )
    return tuple(dict.fromkeys(known))


def _special_token_fields(folder: Folder) -> dict[str, Any]:
    """Return what is said of special tokens.

    Older folders say it in a file of its own, which then counts for more.
    """
    settings, legacy = folder.fields(SETTINGS), folder.fields("special_tokens_map.json")
    return {**legacy, **settings} if "added_tokens_decoder" in settings else {**settings, **legacy}


def _role_values(declared: Mapping[str, Any]) -> dict[str, Any]:
    """Return the special tokens by their roles, as text or as tokens with flags; a model may
    have roles of its own.
    """
    extra = dict[str, Any]()
    for key in _EXTRA_ROLE_KEYS:
        extra |= declared[key] if isinstance(declared.get(key), dict) else {}
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
    """Return the names of the added tokens that a description has."""
    entries = description.get("added_tokens")
    return {
        _content(entry)
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict)
    }


def _added_tokens(
    folder: Folder, declared: Mapping[str, Any], known_names: set[str]
) -> Iterator[dict[str, Any]]:
    """Yield the added tokens that files other than tokenizer.json know, in order of ids."""
    roles = list(_role_values(declared).values())
    extra = declared.get("extra_special_tokens") or declared.get("additional_special_tokens")
    special = [*roles, *(extra if isinstance(extra, list) else [])]
    decoder = declared.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        entries = [
            (int(key), each) for key, each in decoder.items() if key.isdecimal() and len(key) < 10
        ]
    else:
        named = {_content(each) for each in special}
        listed = folder.fields("added_tokens.json")
        # Where a template writes such a name it is one token, whatever a normaliser puts before the
        # text.
        entries = [
            (token, {"content": name, "special": name in named, "normalized": False})
            for name, token in listed.items()
            if type(token) is int and name not in known_names
        ]
    yielded = set(known_names)
    for _token, each in sorted(entries, key=lambda entry: entry[0]):
        if isinstance(each, dict) and _content(each):
            yielded.add(_content(each))
            yield added_token(_content(each), each)
    for each in special:
        if _content(each) and _content(each) not in yielded:
            yielded.add(_content(each))
            yield added_token(_content(each), each if isinstance(each, dict) else {}, special=True)


def _from_merges(folder: Folder, declared: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the description of a tokenizer from GPT-2's two files; None if there are none."""
    vocabulary, merges = folder.json("vocab.json"), folder.text("merges.txt")
    if vocabulary is None or merges is None:
        other = safe_line(foreign.find_vocabulary_file(folder.path))
        if other:  # without it the model's tokens would be numbers
            raise UserError(
                _(
                    "{file:.80} alone is not enough; tokenizer.json is needed, or "
                    "vocab.json with merges.txt",
                    file=other,
                )
            )
        return None
    usual = (
        "Qwen2Tokenizer"
        if str(folder.config_fields.get("model_type")).startswith("qwen")
        else BYTE_LEVEL_CLASSES[0]
    )
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

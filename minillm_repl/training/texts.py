"""The texts of a run as tokens, with the tokenizer that writes them: the model's, or a new one."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from minillm_repl.chat import DEFAULT_CHAT_TEMPLATE, ROLE_TOKENS, TOOL_TOKEN
from minillm_repl.checkpoint import ChatTemplate, Checkpoint
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.storage.paths import cache_folder
from minillm_repl.tokenizer import CharacterTokenizer, Tokenizer
from minillm_repl.training.corpus import Corpus, OpenCorpora
from minillm_repl.training.documents import split_chunks
from minillm_repl.training.plan import TrainPlan
from minillm_repl.training.splits import Weighted
from minillm_repl.training.token_cache import TokenisedCorpus
from minillm_repl.training.tokenize import describe_unknown, tokenise

if TYPE_CHECKING:
    from minillm_repl.training.run import RunContext

_EOS_TOKENS = ("<end>", "<|end|>", "<|endoftext|>")
END_TOKEN, BPE_EOS_TOKEN = "<end>", "<|endoftext|>"
# Characters of a text for the BPE trainer: it takes 256 at once, and needs many times their size.
_BPE_CHUNK = 1 << 14
_BPE_CHARACTERS = 1 << 24  # of a longer corpus, an even part of this size is learnt from


@dataclass(kw_only=True)
class Texts:
    """What a run learns from, as tokens, and what writes them."""

    name: str
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    eos_token_ids: tuple[int, ...]
    train: list[Weighted] = field(default_factory=list)
    val: TokenisedCorpus | None = None  # a text of its own to measure on
    n_tokens: int = 0  # of one pass
    unique_tokens: int = 0  # of the vocabulary that occur, in the corpus that has the most
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def tokenise_corpora(
    corpora: OpenCorpora,
    start: Checkpoint | None,
    plan: TrainPlan,
    context: "RunContext",
    chat: ChatTemplate | None,
    *,
    is_resumed: bool = False,
) -> Texts:
    """Return the texts of a run as tokens; a new model gets its tokenizer here."""
    is_conversational = corpora.train.is_conversational
    if start:
        tokenizer, template = start.tokenizer, start.chat_template
        eos_token_ids = start.eos_token_ids
    else:
        tokenizer = make_tokenizer(plan.tokenizer, corpora.train)
        template = chat or (DEFAULT_CHAT_TEMPLATE if is_conversational else None)
        eos_token_ids = _find_eos(tokenizer)
    if eos_token_ids and corpora.train.count > 1 and corpora.train.has_texts:
        # Training puts this token between texts, so each begins after one: prompts must too.
        tokenizer = tokenizer.with_start(tokenizer.special_name(eos_token_ids[0]))
    text = Texts(
        name=corpora.name,
        tokenizer=tokenizer,
        chat_template=template,
        eos_token_ids=eos_token_ids,
        notes=[*corpora.notes],
    )
    if start and start.chat_template and not is_resumed and not is_conversational:
        text.warnings.append(_forgetting_warning(corpora.train))
    is_part = bool(corpora.train.parts)  # of a mixture: its documents end, even if it is one
    for part, weight in corpora.train.parts or [(corpora.train, 1.0)]:
        tokens = _tokenise_one(part, text, context, is_part=is_part)
        text.train.append((tokens, weight))
        text.n_tokens += int(len(tokens.ids) * weight)  # documents come as often as that
        text.unique_tokens = max(text.unique_tokens, tokens.unique_tokens)
    if corpora.val_corpus:
        text.val = _tokenise_one(corpora.val_corpus, text, context)
    return text


def _tokenise_one(
    corpus: Corpus, text: Texts, context: "RunContext", *, is_part: bool = False
) -> TokenisedCorpus:
    text.notes += [f"{safe_line(corpus.name)}: {note}" for note in corpus.notes]
    if corpus.is_conversational and text.chat_template is None:
        raise UserError(
            _(
                "the corpus contains conversations, but this model has no chat "
                "template to render them"
            )
        )
    tokens = tokenise(
        corpus,
        text.tokenizer,
        separator=text.eos_token_ids[0] if text.eos_token_ids else None,
        template=text.chat_template if corpus.is_conversational else None,
        cache=cache_folder("tokens"),
        is_part=is_part,
        progress=context.progress,
        interrupted=context.interrupted,
    )
    if tokens.unknown_characters:
        text.notes.append(describe_unknown(tokens, corpus, text.tokenizer))
    return tokens


def _forgetting_warning(corpus: Corpus) -> str:
    """Return the warning before a model that chats learns plain text."""
    return _(
        "{corpus} is plain text, but this model chats: training on it makes the answers "
        "worse. To teach answers, use conversations as JSON lines with `messages` "
        "(docs/training.md)",
        corpus=safe_line(corpus.name),
    )


def _find_eos(tokenizer: Tokenizer) -> tuple[int, ...]:
    ids = (tokenizer.token_to_id(name) for name in _EOS_TOKENS)
    return tuple(token for token in ids if token is not None)[:1]


# -- the tokenizer of a new model


def make_tokenizer(kind: str, corpus: Corpus) -> Tokenizer:
    """Make a corpus's tokenizer: `char` (every character), `char:N` (the N most frequent, and bytes
    for the others), `bpe:N`.

    A token that ends a document is in it if there is more than one document, and those of the roles
    if these are conversations. Raises UserError for a vocabulary too small to be one.
    """
    name, _colon, number = kind.partition(":")
    role_tokens = [*ROLE_TOKENS, *([TOOL_TOKEN] if corpus.has_tools else [])]
    specials = role_tokens if corpus.is_conversational else [END_TOKEN] if corpus.count > 1 else []
    if name == "bpe":
        from minillm_repl.tokenizer.library import train_bpe
        from minillm_repl.tokenizer.subword import SubwordTokenizer

        min_size = 256 + 1 + len(ROLE_TOKENS)  # every byte, the end of a document, the roles
        if int(number) < min_size:
            raise UserError(
                _(
                    "tokenizer=bpe:{number} is too small: bytes and special tokens alone "
                    "take {least}",
                    number=number,
                    least=min_size,
                )
            )
        special = [BPE_EOS_TOKEN, *(role_tokens if corpus.is_conversational else ())]
        description = train_bpe(_sample_texts(corpus), int(number), special)
        return SubwordTokenizer(
            description, {"eos_token": BPE_EOS_TOKEN}, len(description["model"]["vocab"])
        )
    code_points = np.flatnonzero(corpus.character_counts)  # all that occur, in Unicode's order
    if number and int(number) < len(code_points):
        if int(number) < 1:
            raise UserError(_("tokenizer=char:0 has no characters; use at least 1"))
        order = np.argsort(-corpus.character_counts[code_points], kind="stable")
        code_points = np.sort(code_points[order[: int(number)]])
    return CharacterTokenizer(
        [chr(code_point) for code_point in code_points if not 0xD800 <= code_point < 0xE000],
        specials,
        has_bytes=bool(number),
    )


def _sample_texts(corpus: Corpus) -> Iterator[str]:
    """Yield the texts of a corpus in chunks; of a long one, an even part of them."""
    texts = (text for document in corpus.documents() for text in document.texts)
    chunks = (chunk for text in texts for chunk in split_chunks(text, _BPE_CHUNK))
    # Every n-th chunk, so that all parts of a long corpus are in the sample.
    every = -(-int(corpus.character_counts.sum()) // _BPE_CHARACTERS)
    return islice(chunks, 0, None, every)

"""`:features`: a sparse autoencoder of one's own model: trained, listed, looked at, steered by."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, MODEL, TITLE
from minillm_repl.render.drawing import bar, short_label, title
from minillm_repl.render.tables import plain_table
from minillm_repl.repl.arguments import Arguments, ChoiceOption, Number, Option, TextArgument, Words
from minillm_repl.repl.forms import Forms
from minillm_repl.repl.registry import command
from minillm_repl.settings import integer, number
from minillm_repl.tokenizer import Token, Tokenizer
from minillm_repl.tokenizer.truncation import Truncation
from minillm_repl.views import features_use as use
from minillm_repl.views.base import View, inspect_text, show
from minillm_repl.views.contributions import promoted_tokens
from minillm_repl.views.features_dictionary import Dictionary, Figures, features_title
from minillm_repl.views.inspected_text import InspectedText, no_grad

if TYPE_CHECKING:
    from minillm_repl.model.build import LanguageModel
    from minillm_repl.repl.shell import Shell

_ROWS = 12  # features that are listed
_WRITTEN = 8  # tokens that a feature promotes, and as many that it suppresses
_NEIGHBOURS = 5


@dataclass(frozen=True)
class FeatureRow:
    """A feature that is active on a text."""

    feature: int
    peak: float  # the largest activation
    position: int  # where that is
    token: Token
    active: int  # at how many tokens it is active
    density: float | None  # the share of tokens in the text that it was trained on
    promotes: tuple[Token, ...]


@dataclass(frozen=True, kw_only=True)
class FeaturesView(View, Truncation):
    """The features of a layer that are most active on a text."""

    layer: int
    features: int
    k: int  # 0: no limit
    source: str
    steps: int
    figures: Figures | None
    tokens: tuple[Token, ...]
    rows: tuple[FeatureRow, ...]
    kind: str  # `sae` or `transcoder`

    def draw(self, _width: int) -> RenderableType:
        """Return a row for each feature, the most active first."""
        table = plain_table(
            _("feature"), _("most active at"), _("activation"), _("active at"), _("everywhere"),
            _("promotes"), right=(0, 2, 3, 4), wrap=(5,),
        )  # fmt: skip
        for row in self.rows:
            table.add_row(
                Text(str(row.feature), TITLE),
                Text.assemble(short_label(row.token, 10), (f" @{row.position}", FIGURES)),
                f"{row.peak:.2f}",
                str(row.active),
                "–" if row.density is None else f"{row.density:.1%}",
                _labels(row.promotes[:4]),
            )
        heading = title(
            features_title(self.layer, self.kind),
            _("the {n} most active of {all:,} on this text", n=len(self.rows), all=self.features),
        )
        hint = _("everywhere: share of the tokens trained on · `:features N` shows one")
        return Group(heading, table, use.about(self.figures, self.features), Text(hint, FIGURES))


@dataclass(frozen=True)
class Example:
    """A text on which a feature is active, and the token at which it is."""

    tokens: tuple[Token, ...]
    marked: int
    value: float


@dataclass(frozen=True)
class Near:
    """Another feature, and the cosine of the two directions."""

    feature: int
    cosine: float
    promotes: tuple[Token, ...]


@dataclass(frozen=True, kw_only=True)
class FeatureView(View):
    """One feature: its top texts, the tokens that it writes, its neighbours."""

    layer: int
    feature: int
    density: float | None
    examples: tuple[Example, ...]
    promotes: tuple[Token, ...]
    suppresses: tuple[Token, ...]
    neighbours: tuple[Near, ...]

    def draw(self, width: int) -> RenderableType:
        """Return the texts with the token marked, then what the feature writes."""
        parts: list[RenderableType] = []
        rate = "" if self.density is None else _("active at {share:.2%} of the tokens",
                                                 share=self.density)  # fmt: skip
        heading = _("feature {n} of layer {layer}", n=self.feature, layer=self.layer)
        parts.append(title(heading, rate))
        peak = max((each.value for each in self.examples), default=1.0)
        for each in self.examples:
            line = Text.assemble((f"{each.value:7.2f} ", FIGURES),
                                 (f"{bar(each.value / peak, 6):6} ", MODEL))  # fmt: skip
            for at, token in enumerate(each.tokens):
                mark = at == each.marked
                line.append("⟦" if mark else "", FIGURES)
                line.append(token.label, TITLE if mark else "")
                line.append("⟧" if mark else "", FIGURES)
            line.truncate(width, overflow="ellipsis")
            parts.append(line)
        if not self.examples:
            parts.append(Text(_("no text is known that activates it"), FIGURES))
        parts.append(Text.assemble((_("promotes") + "  ", FIGURES), _labels(self.promotes)))
        parts.append(Text.assemble((_("suppresses") + "  ", FIGURES), _labels(self.suppresses)))
        for near in self.neighbours:
            line = Text(_("near {n}  cosine {cosine:+.2f}  ", n=near.feature, cosine=near.cosine))
            parts.append(line.append_text(_labels(near.promotes[:4])))
        hint = _("`:features steer {n} strength=4` adds it, `:features ablate {n}` removes it",
                 n=self.feature)  # fmt: skip
        return Group(*parts, Text(hint, FIGURES))


def _labels(tokens: Sequence[Token]) -> Text:
    return Text(" ").join(short_label(token, 12) for token in tokens)


@no_grad
def compute(inspected: InspectedText, dictionary: Dictionary) -> FeaturesView:
    """Return the features with the largest activations on a text, position 0 left out."""
    place = dictionary.reads
    stream = inspected.run_with_cache(place, last_only=True)[1][place]  # (time, d_model)
    active = dictionary.encode(stream.float())  # (time, features)
    active[0] = 0
    peaks = active.max(0)
    strongest = peaks.values.argsort(descending=True, stable=True)[:_ROWS].tolist()
    chosen = [feature for feature in strongest if float(peaks.values[feature]) > 0]
    tokens = promoted_tokens(
        inspected.model, inspected.tokenizer, dictionary.decoder[chosen], _WRITTEN
    )
    density = dictionary.examples.density if dictionary.examples else None
    return FeaturesView(
        layer=dictionary.layer, features=dictionary.size, k=dictionary.k,
        source=dictionary.source, steps=dictionary.steps, figures=dictionary.figures,
        tokens=inspected.tokens, kind=dictionary.kind,
        rows=tuple(
            FeatureRow(
                feature=feature,
                peak=float(peaks.values[feature]),
                position=inspected.position_of(int(peaks.indices[feature])),
                token=inspected.tokens[int(peaks.indices[feature])],
                active=int((active[:, feature] > 0).sum()),
                density=None if density is None else float(density[feature]),
                promotes=promotes,
            )
            for feature, (promotes, _suppresses) in zip(chosen, tokens, strict=True)
        ),
        **inspected.window_fields,
    )  # fmt: skip


@no_grad
def compute_one(
    model: "LanguageModel", tokenizer: Tokenizer, dictionary: Dictionary, feature: int
) -> FeatureView:
    """Return what is known of one feature. Raises UserError if there is none of that number."""
    from torch.nn.functional import normalize

    feature = dictionary.feature(feature)
    unit = normalize(dictionary.decoder, dim=-1)  # (features, d_model)
    cosines = unit @ unit[feature]
    order = cosines.argsort(descending=True, stable=True).tolist()
    near = [each for each in order if each != feature][:_NEIGHBOURS]
    tokens = promoted_tokens(model, tokenizer, dictionary.decoder[[feature, *near]], _WRITTEN)
    found, examples = dictionary.examples, list[Example]()
    for ids, marked, value in (
        zip(found.ids[feature], found.marked[feature], found.values[feature], strict=True)
        if found
        else ()
    ):
        # The file is untrusted: an id that is no token of the model is left out.
        kept = [int(each) for each in ids if 0 <= each < tokenizer.vocab_size]
        if value > 0 and 0 <= marked < len(kept):
            labels = tuple(Token.from_id(tokenizer, each) for each in kept)
            examples.append(Example(labels, int(marked), float(value)))
    return FeatureView(
        layer=dictionary.layer,
        feature=feature,
        density=float(found.density[feature]) if found else None,
        examples=tuple(examples),
        promotes=tokens[0][0],
        suppresses=tokens[0][1],
        neighbours=tuple(
            Near(each, float(cosines[each]), promotes)
            for each, (promotes, _suppresses) in zip(near, tokens[1:], strict=True)
        ),
    )


_LAYER = Option("layer", integer(0), None, "L")


@command(
    "features",
    arguments=Forms(
        (Number("number", integer(0)), _LAYER, TextArgument()),
        (
            "train",
            Option("layer", integer(0), None, "L"),
            Option("text", str, "", "FILE"),
            ChoiceOption("kind", "sae", "transcoder"),
            Option("k", integer(1, 4_096), 32),
            Option("width", integer(1, 64), 8),
            Option("steps", integer(1, 1_000_000), 1_000),
        ),
        ("more", _LAYER, Option("text", str, "", "FILE"), Option("steps", integer(1), 1_000)),
        ("steer", Number("number", integer(0), required=True), _LAYER,
         Option("strength", number(-1e6, 1e6), 4.0)),
        ("ablate", Number("number", integer(0), required=True), _LAYER),
        ("off",),
        ("save", _LAYER, Words("path", "FOLDER", required=True, completion="file")),
        ("open", Option("text", str, "", "FILE"), Words("path", "FOLDER", required=True,
                                                         completion="file")),
    ),
    json=True,
    aliases=("특징",),
    group="Look inside",
    restores=lambda asked: asked.keyword in ("steer", "ablate", "off"),
    example=":features off",
)  # fmt: skip
def features(shell: "Shell", asked: Arguments) -> None:
    """Train and use features of a layer (sparse autoencoder).

    A sparse autoencoder writes the residual stream after a layer as a sum of a few of many
    directions, the features: x ≈ f · W_dec + b_dec, f = TopK((x − b_dec) · W_enc + b_enc).

    `:features train layer=2 text=FILE` trains `width` × d_model features, of which `k` may be
    active at a token, on the tokens of FILE. Ctrl-C ends it and keeps what it has; `:features more
    text=FILE` goes on. Position 0 is left out, where models keep one large vector.
    `kind=transcoder` trains a transcoder of the layer's MLP instead (Dunefsky et al., 2024): it
    reads what the MLP reads, and makes what the MLP adds.

    :features lists the features that are most active on the text so far, or on TEXT.
    :features N shows the texts on which feature N is most active, with the token marked; the tokens
    whose logits it raises and lowers most, directly; and the features with the nearest directions.
    :features steer N adds `strength` × the unit vector of its direction at every position;
    :features ablate N subtracts what it adds. :features off ends both.
    :features save FOLDER and :features open FOLDER write and read folders of SAELens (cfg.json and
    sae_weights.safetensors) for a residual stream: topk, standard, jumprelu; and transcoders for
    the input of an MLP: transcoder, jumprelu_transcoder. (SAELens has no TopK transcoder, and does
    not open ours.) With text=FILE, they are measured and their texts found.

    loss recovered: (loss without − loss with the features) / (loss without − loss); `without` is
    the stream, or what the MLP adds, replaced by 0. The
    layer is the one that was trained last, unless `layer=` says another.
    """
    if asked.keyword in ("train", "more"):
        show(shell, use.train(shell, asked, is_more=asked.keyword == "more"), asked.output)
    elif asked.keyword == "open":
        show(shell, use.open_folder(shell, asked.path, asked.text), asked.output)
    elif asked.keyword == "off":
        use.off(shell)
    elif asked.keyword == "save":
        use.save_folder(shell, asked.path, asked.layer)
    elif asked.keyword:
        use.intervene(shell, asked)
    else:
        dictionary = use.stored(shell, asked.layer)
        if asked.number is None:
            view = compute(inspect_text(shell, asked.text), dictionary)
            show(shell, view, asked.output)
            return
        if asked.text:
            raise UserError(_("`:features N` needs no text"))
        model = shell.require_model()
        tokenizer = model.checkpoint.tokenizer
        one = compute_one(model.language_model, tokenizer, dictionary, asked.number)
        show(shell, one, asked.output)

"""Generation one token at a time, by hand: another token, a text of the user's, a step back."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

from minillm_repl.errors import UserError
from minillm_repl.generate import (
    NO_RULES,
    Decoder,
    GenerationConfig,
    Sampling,
    Step,
    TokenRules,
    never_interrupted,
)
from minillm_repl.generate.detokenizer import Detokenizer
from minillm_repl.generate.generate import (
    StepSampler,
    check_finite,
    generate,
    prefill,
)
from minillm_repl.generate.sampling import make_rng, next_mu
from minillm_repl.language import _
from minillm_repl.tokenizer import Tokenizer


class InteractiveDecoder:
    """A text that the user extends and shortens, token by token.

    Its next token depends only on its tokens, not on the steps that led there: the random number
    belongs to the place. So taking every drawn token writes the text of a generation.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        ids: Sequence[int],
        sampling: Sampling,
        seed: int,
        *,
        eos_token_ids: Collection[int] = (),
        n_candidates: int = 10,
        rules: TokenRules = NO_RULES,
        answer_start: int | None = None,
    ) -> None:
        self._decoder, self._tokenizer, self._seed = decoder, tokenizer, seed
        self._step: Step | None = None  # the last one
        self._mu: dict[int, float | None] = {}  # the limit of Mirostat, by the length of the text
        self._config = GenerationConfig(
            max_tokens=1,
            sampling=sampling,
            eos_token_ids=eos_token_ids,
            n_candidates=n_candidates,
            rules=rules,
            answer_start=len(ids) if answer_start is None else answer_start,
        )
        self._prompt_length = len(ids)
        self.ids = list(ids)

    @property
    def new_ids(self) -> list[int]:
        """The tokens after the text that it began with."""
        return self.ids[self._prompt_length :]

    def next_step(self, interrupted: Callable[[], bool] = never_interrupted) -> Step:
        """Return the step that a generation would take here; the text stays as it is.

        Raises UserError if `interrupted`, or if the logits are not finite.
        """
        # The place of the token in the completion selects its random number.
        token_index = len(self.ids) - self._prompt_length
        rng = make_rng(self._seed, token_index)
        config = replace(self._config, mu=self._mu.get(len(self.ids)))
        events = generate(self._decoder, self._tokenizer, self.ids, config, rng, interrupted)
        step = next((event for event in events if isinstance(event, Step)), None)
        if step is None and self._is_complete():
            raise UserError(_("the format is complete: nothing can follow"))
        if step is None:
            raise UserError(_("stopped"))
        self._step = replace(step, index=token_index)
        return self._step

    def _is_complete(self) -> bool:
        constraint, start = self._config.rules.constraint, self._config.answer_start
        return bool(constraint and constraint.start(self.ids[start:]).ended)

    def append(self, *tokens: int) -> bool:
        """Append these tokens; return False, and append none, if the last one ends the text."""
        if tokens[-1] in self._config.eos_token_ids:
            return False
        self._follow(tokens)
        self.ids += tokens
        return True

    def _follow(self, tokens: Sequence[int]) -> None:
        """Move Mirostat's limit as a generation does; a text of the user's leaves it."""
        mu, step, sampling = self._mu.get(len(self.ids)), self._step, self._config.sampling
        if sampling.mirostat and step and tokens == (step.id,) and step.prob:
            mu = next_mu(mu, sampling, step.prob)
        self._mu[len(self.ids) + len(tokens)] = mu

    def undo(self) -> bool:
        """Remove the last token; return False if there is none."""
        if len(self.ids) == self._prompt_length:
            return False
        self.ids.pop()
        return True


def replay(
    decoder: Decoder,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    new_ids: Sequence[int],
    sampling: Sampling,
    *,
    rules: TokenRules = NO_RULES,
    answer_start: int | None = None,
    n_candidates: int = 10,
    interrupted: Callable[[], bool] = never_interrupted,
) -> Iterator[Step]:
    """Yield the step of each token that was generated after `ids`, whoever chose it.

    The prompt is read from nothing, as it was the first time: the numbers are those of then. Raises
    UserError if `interrupted`, or if the decoder has no logits.
    """
    config = GenerationConfig(
        max_tokens=1, sampling=sampling, rules=rules, n_candidates=n_candidates
    )
    start = len(ids) if answer_start is None else answer_start
    sampler = StepSampler(tokenizer, config, make_rng(0), Detokenizer(), start)
    text = list(ids)
    decoder.trim(0)
    for index, token in enumerate(new_ids):
        logits = prefill(decoder, text, interrupted)
        if logits is None or interrupted():
            raise UserError(_("stopped"))
        yield sampler.step(index, check_finite(logits, len(text)), text, token)
        text.append(token)

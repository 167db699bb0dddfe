"""Generation in either direction and in both: the seed of a title grows from its two ends at once.

One direction runs through transformers' own `generate`; right-to-left starts with the end id, ends with the start id,
and its results are turned round. Both directions run the bidirectional beam search below (Su Jianlin,
https://kexue.fm/archives/6877, after Zhou, Zhang and Zong 2019, https://arxiv.org/abs/1905.04847).

A title has two orders: its reading order, in which results come, and its writing order, which for right-to-left is
the other way round and in which processors, criteria and per-step outputs see it.

Letters: B documents, K beams per direction, V vocabulary, S source length, N attention heads, L length of a sequence
with its start id, M candidates of a document.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.logits_process import SuppressTokensLogitsProcessor
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria, MaxTimeCriteria
from transformers.generation.utils import (
    GenerateBeamEncoderDecoderOutput,
    GenerateEncoderDecoderOutput,
    GenerateOutput,
)
from transformers.utils import logging

from .cache_bidir_seq2seq import CACHE_NAME, BidirSeq2SeqCache, takes_cache
from .directions_bidir_seq2seq import Direction, check_ids, directions_of
from .kernels_bidir_seq2seq import is_read_at_once
from .output_bidir_seq2seq import IMPOSSIBLE, NextTokens, Shortlist, Words
from .proposals_bidir_seq2seq import (
    DRAWN,
    SPLICED,
    WITH_SAMPLES,
    Found,
    Pool,
    merged,
    proposers_of,
    searches_in,
    searches_of,
)
from .ranking_bidir_seq2seq import (
    Candidates,
    asks_alone,
    asks_for_samples,
    consensus,
    is_known_to,
    may_ask_for_samples,
    rule_of,
)
from .samples_bidir_seq2seq import DRAWN_TOGETHER, draw_titles, in_groups
from .search_bidir_seq2seq import Beam, BeamHistory, StepRecords, forbidden_tokens, search, select
from .splices_bidir_seq2seq import may_be_written, with_splices

logger = logging.get_logger(__name__)

# What transformers keeps to itself and this module builds on, all of it: methods of `GenerationMixin` that the mixin
# below extends, and names that its `generate` leaves on a prepared `GenerationConfig`.
PRIVATE_HOOKS = (
    "_assisted_decoding",
    "_beam_search",
    "_expand_inputs_for_generation",
    "_get_logits_processor",
    "_get_stopping_criteria",
    "_has_unfinished_sequences",
    "_prepare_cache_for_generation",
    "_prepare_generation_config",
    "_prepare_model_inputs",
    "_prepare_special_tokens",
    "_sample",
    "_validate_generation_mode",
)
PRIVATE_TENSORS = ("_decoder_start_token_tensor", "_eos_token_tensor", "_pad_token_tensor")

# Our own flags of `generate`, and their values where nothing is said.
FLAGS: dict[str, Any] = {
    "decoding_direction": None,
    "proposals": None,
    "ranking": None,
    "consensus_samples": 16,
    "joint_rescoring": False,
    "vocabulary_shortlist": None,
}
# Two names of one thing.
RANKING_FLAGS = {"ranking", "joint_rescoring"}
# Of a `GenerationConfig`: ids of tokens that may be written.
ID_SETTINGS = (
    "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "forced_bos_token_id",
    "forced_eos_token_id",
)  # fmt: skip
# What `forward` knows of, and a search makes itself, or has no use for.
NOT_FOR_WRITING = ("use_twin", "r2l_decoder_input_ids", "decoder_inputs_embeds")
ONE_WAY = "pass decoding_direction='l2r'"
# Criteria that remember nothing of titles, and need not see all of a batch.
FORGETFUL_CRITERIA = (EosTokenCriteria, MaxLengthCriteria, MaxTimeCriteria)
# Settings of a `GenerationConfig` that speak of a title's left end, or of the order in which it is written.
LEFT_END_SETTINGS = ("forced_bos_token_id", "begin_suppress_tokens", "stop_strings", "watermarking_config")


@dataclass
class BidirBeamSearchOutput(GenerateBeamEncoderDecoderOutput):
    """What the bidirectional search found; R = B * num_return_sequences, best first for each document.

    Args:
        sequences: `[R, L]`, in reading order.
        sequences_scores: `[R]`, what the candidates were ranked by: log-probability divided by length **
            length_penalty, of the direction that wrote it, or what the rule of `ranking` says. Minus infinity where a
            document has fewer titles than `num_return_sequences`; the row is then empty.
        directions: For each sequence the direction that wrote it, `"l2r"` or `"r2l"`.
        token_scores: `[R, L - 1]`, for each token of `sequences` after the start id its (processed) log-probability
            when its direction wrote it, the end's included, 0 at padding. With `output_scores`.
        l2r_log_probs, r2l_log_probs: `[R]`, log-probability of the whole title under each direction alone. With
            `ranking="joint"`.
        source_attentions: `[R, N, L - 1, S]`, what each token's decoder read of the source when it wrote it, 0 at
            padding. With `output_attentions`.
        beam_indices: `[R, L - 1]` in writing order, the row of `l2r_scores` or `r2l_scores` that each token was
            chosen from, -1 where there is none. With `output_scores` or `output_attentions`.
        l2r_scores, r2l_scores: For each step, `[B * K, V]` processed log-probabilities of the next token. With
            `output_scores`.
        l2r_logits, r2l_logits: The same before processing. With `output_logits`.
        history: How the beams grew, step by step ([`BeamHistory`]). With `output_attentions`, which takes longer.
        encoder_hidden_states: As the encoder gave them. With `output_hidden_states`.

    The fields of transformers' own class that are not named here are `None`: they describe a single direction.
    """

    directions: list[str] | None = None
    token_scores: torch.Tensor | None = None
    l2r_log_probs: torch.Tensor | None = None
    r2l_log_probs: torch.Tensor | None = None
    source_attentions: torch.Tensor | None = None
    l2r_scores: tuple[torch.Tensor, ...] | None = None
    r2l_scores: tuple[torch.Tensor, ...] | None = None
    l2r_logits: tuple[torch.Tensor, ...] | None = None
    r2l_logits: tuple[torch.Tensor, ...] | None = None
    history: BeamHistory | None = None


class StopTexts(StoppingCriteria):
    """Ends a title with the token that completes one of the stop strings, told from its text.

    transformers' own criterion takes tokens apart, and knows only vocabularies that have the letters a to f.

    Args:
        tokenizer: The model's.
        stop_strings: One, or several.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_strings: str | list[str]):
        self.tokenizer = tokenizer
        self.stop_strings = [stop_strings] if isinstance(stop_strings, str) else list(stop_strings)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor, **kwargs: Any) -> torch.BoolTensor:
        """`[R, L]` tokens to `[R]`, which rows end."""
        before, after = (
            self.tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in (input_ids[:, :-1], input_ids)
        )
        ends = [any(x in now and x not in then for x in self.stop_strings) for then, now in zip(before, after)]
        return torch.tensor(ends, dtype=torch.bool, device=input_ids.device)


class DirectedScores(tuple):
    """Scores of every step, as transformers gives them, that know which direction wrote them.

    Attributes:
        decoding_direction: `"l2r"` or `"r2l"`.
    """

    decoding_direction = "l2r"


class _TwoWayProcessors(LogitsProcessorList):
    """The left-to-right direction's processors, and the other's in `r2l`."""

    r2l: LogitsProcessorList


class _TwoWayCriteria(StoppingCriteriaList):
    """The left-to-right direction's criteria, and the other's in `r2l`."""

    r2l: StoppingCriteriaList


class BidirSeq2SeqGenerationMixin:
    """Adds `decoding_direction`, `ranking` and `vocabulary_shortlist` to `generate`. Before `GenerationMixin`.

    Args:
        decoding_direction (`"both"`, `"l2r"` or `"r2l"`): The bidirectional beam search, or one decoder alone with
            its twin off. Default: what the model has.
        proposals (`str`): Which searches propose titles, joined by "+": `"both"`, in lock-step; `"l2r"` and `"r2l"`,
            the decoders alone, which needs a model trained with `twin_dropout` above 0; `"l2r+r2l+both"`, all three,
            which takes about twice as long; `"drawn"`, chance (`consensus_samples`); `"spliced"`, beginnings of the
            best of all these from the left with ends of the best from the right. What several have found is ranked
            together. Default: `"both"`, but `"l2r+r2l"` for a model with `twin_partner="none"`; with
            `ranking="consensus"` what is drawn and spliced, too.
        ranking (`str`, `dict` or function): How what is proposed is ranked, one of
            `RANKING_RULES`: `"own"`, by what the direction that wrote a title gave it; `"joint"`, by the mean of both
            directions' log-probabilities with the twin off, each a proper model of the title, which needs a model
            trained with `twin_dropout` above 0; `"consensus"`, by what a title has in common with others that are
            drawn at random by both directions, or by the only one (`consensus_samples`), the best and slowest. Or
            weights of `FEATURES`, such as `{"l2r": 0.4, "r2l": 0.6, "length": 0.02}`, which
            [`rank_tuning.tune_ranking`] finds, or a function from [`Candidates`] to their scores `[B, M]`. One
            direction knows `"own"`, `"consensus"`, and weights without the other's log-probability.
        consensus_samples (`int`): How many titles each direction draws for `"consensus"`; the same ones each time. 0:
            the candidates themselves are compared, each as often as `"joint"` finds it likely. Default: 16.
        joint_rescoring (`bool`): The same by its older name: `True` is `ranking="joint"`.
        vocabulary_shortlist (`int`): Titles use their document's own words and so many of the words most frequent in
            the titles that the model learned from; no others are computed. What those would take of the probability
            is estimated. Needs a model with `use_prior`. Default: the whole vocabulary.
    """

    def init_generation_defaults(self) -> None:
        """Puts our flags on `generation_config`, so that `generate` takes them and checkpoints keep them."""
        for name, value in FLAGS.items():
            setattr(self.generation_config, name, value)
        self.generation_config.decoding_direction = self.config.decoder_directions
        # A config derived from the model's would lose custom entries when it is loaded again.
        self.generation_config._from_model_config = False

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuses to: it is for models without encoder, whose past is keys and values.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "continuous batching (generate_batch, cache_implementation='paged') needs pasts of keys and values, and "
            "this model keeps a recurrent state: use generate, or the pipeline with a batch_size"
        )

    def _prepare_generation_config(
        self, generation_config: GenerationConfig | None, **kwargs: Any
    ) -> tuple[GenerationConfig, dict[str, Any]]:
        ours = {name: kwargs.pop(name) for name in FLAGS if name in kwargs}
        for name in NOT_FOR_WRITING:
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"{name} is of no effect in generate: leave it out; proposals says whether twins write together, "
                    "and decoder_input_ids with decoding_direction='l2r' how a title begins"
                )
        # Before transformers stumbles over text among them.
        for settings in (kwargs, vars(self.generation_config), vars(generation_config or self.generation_config)):
            self._check_ids_of(settings)
        if generation_config is not None:
            # What it says otherwise than the model's own has been said in this call, but what is said beside it, by
            # either of its names, comes first.
            said = ours.keys() | (RANKING_FLAGS if ours.keys() & RANKING_FLAGS else set())
            theirs = {name: getattr(generation_config, name, None) for name in FLAGS.keys() - said}
            known = {name: getattr(self.generation_config, name, value) for name, value in FLAGS.items()}
            ours |= {name: value for name, value in theirs.items() if value is not None and value != known[name]}
        asked = [kwargs.get("max_new_tokens"), kwargs.get("max_length"), generation_config]
        generation_config, model_kwargs = super()._prepare_generation_config(generation_config, **kwargs)
        if asked[0] is not None and asked[1] is asked[2] is None:
            # The checkpoint's length gives way to the one asked for; transformers would warn of two lengths each time.
            generation_config.max_length = None
        for name, value in FLAGS.items():
            setattr(generation_config, name, ours.get(name, getattr(generation_config, name, value)))
        generation_config.decoding_direction = generation_config.decoding_direction or self.config.decoder_directions
        self._validate_numbers(generation_config)
        self._choose_ranking(generation_config, ours)
        self._validate_direction(generation_config)
        self._choose_proposals(generation_config, ours)
        return generation_config, model_kwargs

    def _prepare_model_inputs(
        self, inputs: torch.Tensor | None, bos_token_id: torch.Tensor | None, model_kwargs: dict
    ) -> tuple[torch.Tensor, str | None, dict]:
        ids = inputs if inputs is not None else model_kwargs.get("input_ids")
        if ids is not None:
            check_ids("input_ids", ids)
        inputs, name, model_kwargs = super()._prepare_model_inputs(inputs, bos_token_id, model_kwargs)
        if model_kwargs.get("encoder_outputs") is not None:
            asked = (model_kwargs.get(key) for key in ("encoder_outputs", "attention_mask", "extended_input_ids"))
            outputs, attention_mask, extended_input_ids = asked
            model_kwargs["encoder_outputs"] = self.get_encoder().complete(
                outputs, ids, attention_mask, extended_input_ids
            )
        return inputs, name, model_kwargs

    def _choose_ranking(self, generation_config: GenerationConfig, given: dict) -> None:
        """One rule from its two names, of which what this call has `given` comes before what the model has stored."""
        wanted = given.get("ranking")
        if "joint_rescoring" in given:
            by_flag = "joint" if given["joint_rescoring"] else "own"
            if wanted not in (None, by_flag):
                raise ValueError(f"ranking={wanted!r} disagrees with joint_rescoring={by_flag == 'joint'}: give one")
            wanted = by_flag
        direction, built = generation_config.decoding_direction, self.config.decoder_directions

        stored = [generation_config.ranking, "joint" if generation_config.joint_rescoring else "own"]
        if stored[0] is not None:
            rule_of(stored[0])
        if direction != "both":
            # A model of both has stored what is meant for both, and what one samples is not ranked.
            is_meant = direction == built and not generation_config.do_sample
            stored = [rule for rule in stored if rule is not None and is_known_to(rule, direction) and is_meant]
        rule = next(rule for rule in (wanted, *stored, "own") if rule is not None)
        rule_of(rule)
        if not is_known_to(rule, direction):
            name = f"ranking={rule!r}" if given.get("ranking") else "joint_rescoring"
            raise ValueError(f"{name} needs decoding_direction='both', not {direction!r}{self._remedy(direction)}")
        if asks_alone(rule) and built == "both" and self.config.twin_dropout == 0:
            raise ValueError(
                f"ranking={rule!r}, or joint_rescoring, needs directions that have learned to write alone, and this "
                "model has twin_dropout=0: train with twin_dropout=0.5, or leave it out"
            )
        generation_config.ranking, generation_config.joint_rescoring = rule, rule == "joint"

    def _remedy(self, direction: str) -> str:
        """What to do where a model has but one direction."""
        if self.config.decoder_directions == "both":
            return ""
        ours = f"proposals='{direction}+drawn+spliced', and ranking='own' or 'consensus'"
        return f", which is all that this model writes: it has {ours}"

    def _choose_proposals(self, generation_config: GenerationConfig, given: dict) -> None:
        direction = generation_config.decoding_direction
        default = searches_of(self.config, direction)
        can_draw = generation_config.consensus_samples > 0 and not generation_config.do_sample
        compares = asks_for_samples(generation_config.ranking)
        if can_draw and compares:
            default = "+".join((default, *WITH_SAMPLES))
        stored = generation_config.proposals if direction == self.config.decoder_directions else None
        asked = given.get("proposals") or stored or default
        names = proposers_of(asked)
        may_compare = may_ask_for_samples(generation_config.ranking)
        is_ranked_otherwise = bool(given.keys() & RANKING_FLAGS) and not may_compare
        if not given.get("proposals") and (is_ranked_otherwise or not can_draw):
            # A model that was tuned with them may still be ranked in another way, and sampled from.
            names = searches_in(names) or proposers_of(default)
        if direction != "both" and set(names) - {direction, *WITH_SAMPLES}:
            raise ValueError(
                f"proposals={asked!r} needs decoding_direction='both', not {direction!r}{self._remedy(direction)}"
            )
        if (idle := [name for name in names if name in WITH_SAMPLES]) and not can_draw:
            raise ValueError(
                f"proposals={asked!r}: with consensus_samples=0 there is nothing to draw, and do_sample=True draws by "
                f"itself: leave {' and '.join(map(repr, idle))} out"
            )
        drawn = generation_config.consensus_samples * len(directions_of(self.config, direction))
        if not searches_in(names) and drawn < generation_config.num_return_sequences:
            raise ValueError(
                f"num_return_sequences={generation_config.num_return_sequences} is more than the {drawn} titles that "
                "are drawn: raise consensus_samples, or add a search to proposals"
            )
        if names == (SPLICED,):
            raise ValueError(f"proposals={asked!r}: there must be something to splice: use 'l2r+r2l+drawn+spliced'")
        if "consensus_samples" in given and not ({*WITH_SAMPLES} & {*names} or may_compare):
            raise ValueError(
                f"consensus_samples is for ranking='consensus', not {generation_config.ranking!r}: leave it out"
            )
        if "both" in names and self.config.twin_partner == "none":
            raise ValueError(
                f"proposals={asked!r}: the decoders of this model have not learned to read each other "
                "(twin_partner='none'): use proposals='l2r+r2l', or train on with twin_partner='own'"
            )
        if direction == "both" and names != ("both",) and self.config.twin_dropout == 0:
            raise ValueError(
                f"proposals={asked!r} needs directions that have learned to write alone, and this model has "
                "twin_dropout=0: train with twin_dropout=0.5, or leave it out"
            )
        generation_config.proposals = "+".join(names)

    @staticmethod
    def _validate_numbers(generation_config: GenerationConfig) -> None:
        for name in ("num_beams", "num_return_sequences"):
            value = getattr(generation_config, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number from 1 on")
        if not isinstance(generation_config.joint_rescoring, bool):
            raise ValueError(f"joint_rescoring={generation_config.joint_rescoring!r} must be True or False")
        samples = generation_config.consensus_samples
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 0:
            raise ValueError(f"consensus_samples={samples!r} must be a whole number of titles, or 0 for none")
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                f"cache_implementation={generation_config.cache_implementation!r}: this model keeps a recurrent "
                "state; leave cache_implementation out"
            )
        shortlist = generation_config.vocabulary_shortlist
        if shortlist is not None and (isinstance(shortlist, bool) or not isinstance(shortlist, int)):
            raise ValueError(f"vocabulary_shortlist={shortlist!r} must be a whole number of words, or None")
        for name in ("bad_words_ids", "sequence_bias"):
            given = sequences = getattr(generation_config, name)
            try:
                if name == "sequence_bias" and not isinstance(given, dict):
                    sequences = [ids for ids, _ in given or ()]
                sound = all(len(ids) > 0 for ids in sequences or ())
            except (TypeError, ValueError):
                sound = False
            if not sound:
                raise ValueError(f"{name}={given!r} must name sequences of ids, none of them empty")

    def _check_ids_of(self, settings: dict[str, Any]) -> None:
        for name in ID_SETTINGS:
            check_ids(name, settings.get(name), self.config.vocab_size, is_setting=True)

    def _validate_direction(self, generation_config: GenerationConfig) -> None:
        direction, built = generation_config.decoding_direction, self.config.decoder_directions
        directions_of(self.config, direction)
        if built not in ("both", direction):
            raise ValueError(f"decoding_direction={direction!r}: this model writes {built!r} only")
        for name, own in (("decoder_start_token_id", "bos_token_id"), ("pad_token_id", "pad_token_id")):
            given, known = getattr(generation_config, name), getattr(self.config, own)
            if any(value not in (None, known) for value in (given if isinstance(given, list) else [given])):
                raise ValueError(f"{name}={given!r}: this model's titles have its own ({known}): leave it out")
        shortlist = generation_config.vocabulary_shortlist
        if shortlist is not None and (not self.config.use_prior or shortlist < 1):
            raise ValueError(
                f"vocabulary_shortlist={shortlist!r} is the number of words, at least 1, that may be written beside "
                "the source's own, which only a model with use_prior=True knows"
            )
        if generation_config.guidance_scale not in (None, 1):
            raise ValueError(
                f"guidance_scale={generation_config.guidance_scale!r} is for models without encoder: leave it out"
            )
        if direction == "l2r":
            return
        for name in LEFT_END_SETTINGS:
            if getattr(generation_config, name, None) is not None:
                raise ValueError(f"{name} speaks of the left end, where {direction!r} does not start: {ONE_WAY}")
        if generation_config.eos_token_id not in (None, self.config.eos_token_id, [self.config.eos_token_id]):
            raise ValueError(
                f"eos_token_id={generation_config.eos_token_id!r} ends titles at their right end, where {direction!r} "
                f"starts with the model's own ({self.config.eos_token_id}): {ONE_WAY}, or leave it out"
            )
        sampled_alone = generation_config.do_sample and generation_config.num_beams == 1
        too_many = generation_config.num_return_sequences > generation_config.num_beams
        if direction == "both" and too_many and not sampled_alone:
            raise ValueError(
                f"num_return_sequences={generation_config.num_return_sequences} is more than "
                f"num_beams={generation_config.num_beams}: raise num_beams"
            )

    def _validate_generation_mode(
        self,
        generation_mode: GenerationMode,
        generation_config: GenerationConfig,
        generation_mode_kwargs: dict[str, Any],
    ) -> None:
        direction = generation_config.decoding_direction
        if direction != "l2r":
            if generation_mode_kwargs.get("streamer") is not None:
                raise ValueError(f"a streamer shows a title from the left: {ONE_WAY}")
            if generation_mode_kwargs.get("assistant_model") is not None:
                raise ValueError(f"an assistant_model writes from the left: {ONE_WAY}")
        if direction == "both" and generation_mode == GenerationMode.ASSISTED_GENERATION:
            raise ValueError(f"candidates can be tried in one direction only: {ONE_WAY} or 'r2l'")
        super()._validate_generation_mode(generation_mode, generation_config, generation_mode_kwargs)

    def _prepare_special_tokens(self, generation_config: GenerationConfig, *args: Any, **kwargs: Any) -> None:
        super()._prepare_special_tokens(generation_config, *args, **kwargs)
        if generation_config.decoding_direction == "r2l":
            self._turn_round(generation_config)

    def _turn_round(self, generation_config: GenerationConfig) -> None:
        """Makes a prepared config speak of a title written from the right: ends swapped, token orders reversed."""
        device = generation_config._pad_token_tensor.device
        (direction,) = directions_of(self.config, "r2l")
        generation_config._decoder_start_token_tensor = torch.tensor(direction.start_id, device=device)
        generation_config._eos_token_tensor = torch.tensor([direction.end_id], device=device)
        if generation_config.forced_eos_token_id is not None:
            generation_config.forced_eos_token_id = direction.end_id
        if generation_config.bad_words_ids is not None:
            generation_config.bad_words_ids = [words[::-1] for words in generation_config.bad_words_ids]
        if generation_config.sequence_bias is not None:
            bias = generation_config.sequence_bias
            pairs = bias.items() if isinstance(bias, dict) else bias
            generation_config.sequence_bias = [[list(ids)[::-1], value] for ids, value in pairs]

    def _turned_round(self, generation_config: GenerationConfig) -> GenerationConfig:
        """Of a prepared config of both directions the one of the right-to-left direction."""
        turned = copy.copy(generation_config)
        self._turn_round(turned)
        turned.decoding_direction = "r2l"
        return turned

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.LongTensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[torch.LongTensor | None, dict[str, Any]]:
        # Hypotheses of one document share its encoding (rows R = B * G), so it is never copied.
        encoder_outputs = model_kwargs.pop("encoder_outputs")
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder=False, input_ids=input_ids, **model_kwargs
        )
        return input_ids, {**model_kwargs, "encoder_outputs": encoder_outputs}

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict, *args: Any
    ) -> None:
        direction = generation_config.decoding_direction
        if direction == "both":
            if model_kwargs.get(CACHE_NAME) is not None:
                raise ValueError(f"{CACHE_NAME} continues one direction: {ONE_WAY} or 'r2l'")
            return
        model_kwargs["decoding_direction"] = direction
        if model_kwargs.get(CACHE_NAME) is None and generation_config.use_cache is not False:
            model_kwargs[CACHE_NAME] = BidirSeq2SeqCache(self.config.decoder_layers)
            if generation_config.is_assistant:
                model_kwargs[CACHE_NAME].activate_past_recording()

    def _get_logits_processor(
        self, generation_config: GenerationConfig, *args: Any, **kwargs: Any
    ) -> LogitsProcessorList:
        direction = generation_config.decoding_direction
        if direction != "l2r" and kwargs.get("prefix_allowed_tokens_fn") is not None:
            raise ValueError(f"prefix_allowed_tokens_fn reads titles from the left: {ONE_WAY}")
        if self._has_samples(generation_config) and kwargs.get("prefix_allowed_tokens_fn") is not None:
            # Of other numbers than that of the beams transformers would take one document's for another's.
            raise ValueError(
                f"prefix_allowed_tokens_fn goes with beams, and proposals={generation_config.proposals!r} has titles "
                "of none: use ranking='own', without what is drawn or spliced"
            )
        source = kwargs.get("encoder_input_ids")
        extended = (kwargs.get("model_kwargs") or {}).get("extended_input_ids")
        theirs = dict(kwargs)
        if source is not None:
            if extended is not None and self.config.use_copy:
                # Some processors compare what is written with the source: its unknown words are written by these ids.
                # They are there for each hypothesis.
                source = extended[:: len(extended) // len(source)]
            # N-grams of both have to run the same way.
            theirs["encoder_input_ids"] = source.flip(1) if direction == "r2l" else source
        processors = super()._get_logits_processor(generation_config, *args, **theirs)
        # First, so that samplers choose among what can be written. Of both the left-to-right direction's come first.
        never_written = self._never_written(directions_of(self.config, direction)[0])
        device = kwargs.get("device") or self.device
        processors.insert(0, SuppressTokensLogitsProcessor(never_written, device=device))
        if direction == "both":
            mirrored = self._turned_round(generation_config)
            # A processor of the user's may remember what it has seen, which must not be the other direction's.
            kwargs["logits_processor"] = _copied(kwargs.get("logits_processor"))
            processors = _TwoWayProcessors(processors)
            processors.r2l = self._get_logits_processor(mirrored, *args, **kwargs)
        return processors

    def _never_written(self, direction: Direction) -> list[int]:
        """Ids that are no part of a title and do not end one."""
        return [direction.pad_id, self.config.unk_token_id, direction.start_id]

    def _get_stopping_criteria(
        self, generation_config: GenerationConfig, *args: Any, **kwargs: Any
    ) -> StoppingCriteriaList:
        tokenizer = kwargs.get("tokenizer")
        if generation_config.stop_strings is not None and tokenizer is not None:
            own = StopTexts(tokenizer, generation_config.stop_strings)
            generation_config = copy.copy(generation_config)
            generation_config.stop_strings = None
            kwargs["stopping_criteria"] = StoppingCriteriaList([own, *(kwargs.get("stopping_criteria") or ())])
        criteria = super()._get_stopping_criteria(generation_config, *args, **kwargs)
        if generation_config.decoding_direction == "both":
            criteria = _TwoWayCriteria(criteria)
            # As of processors, a criterion of the user's may remember what it has seen. One that cannot be copied is
            # more likely a button that ends both.
            kwargs["stopping_criteria"] = _copied(kwargs.get("stopping_criteria"), may_share=True)
            criteria.r2l = super()._get_stopping_criteria(self._turned_round(generation_config), *args, **kwargs)
        return criteria

    def _sample(
        self,
        input_ids: torch.LongTensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **kwargs: Any,
    ) -> GenerateOutput | torch.LongTensor:
        one_way = super()._sample
        return self._decode(one_way, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)

    def _beam_search(
        self,
        input_ids: torch.LongTensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **kwargs: Any,
    ) -> GenerateOutput | torch.LongTensor:
        one_way = super()._beam_search
        return self._decode(one_way, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)

    def _assisted_decoding(
        self,
        input_ids: torch.LongTensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        inputs_tensor: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> GenerateOutput | torch.LongTensor:
        # `generate` looks for the name `inputs_tensor` in this signature.
        one_way, kwargs["inputs_tensor"] = super()._assisted_decoding, inputs_tensor
        if kwargs.get(CACHE_NAME) is not None:
            # It would be done anyway, and tells this from a plain search.
            kwargs[CACHE_NAME].activate_past_recording()
        return self._decode(one_way, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)

    def _decode(
        self,
        one_way: Callable[..., Any],
        input_ids: torch.LongTensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **kwargs: Any,
    ) -> GenerateOutput | torch.LongTensor:
        direction = generation_config.decoding_direction
        if len(input_ids) == 0:
            output = BidirBeamSearchOutput if direction == "both" else GenerateEncoderDecoderOutput
            return output(sequences=input_ids) if generation_config.return_dict_in_generate else input_ids
        if direction != "l2r" and input_ids.shape[1] > 1:
            raise ValueError(f"decoder_input_ids fix the left end, where {direction!r} does not start: {ONE_WAY}")
        write, is_pooled = one_way, self._is_pooled(generation_config)
        if is_pooled and direction != "both" and not self._is_plain_search(input_ids, generation_config, kwargs):
            raise ValueError(
                "ranking='consensus' of one direction, or what is drawn, goes with searching alone: leave it out, or "
                "pass ranking='own' where the model has stored it, when sampling, with a given beginning, "
                "candidates, a streamer or use_cache=False"
            )
        if is_pooled or self._can_search_one_way(input_ids, logits_processor, generation_config, kwargs):
            write = self._search
            if not self.may_be_taken_apart:
                logger.warning_once(
                    "A search in both directions, and titles that are drawn, call the parts of this model, but "
                    "neither its forward nor hooks on the whole: put hooks on a part (lm_head, say), or pass "
                    "decoding_direction='l2r' and ranking='own'."
                )
        elif generation_config.vocabulary_shortlist is not None:
            raise ValueError(
                "vocabulary_shortlist is for searching: leave it out, or pass vocabulary_shortlist=None where the "
                "model has stored it, when sampling in one direction, in greedy search with processors that change "
                "scores, with a given beginning, candidates, a streamer or use_cache=False, and when asking for the "
                "scores, attentions or states of one direction"
            )
        result = write(input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)
        # An assistant's draft is read as it was written.
        if is_pooled or generation_config.is_assistant:
            return result
        (written_by,) = directions_of(self.config, direction)
        if isinstance(result, torch.Tensor):
            return written_by.reading_order(result)[0]
        result.sequences = written_by.reading_order(result.sequences)[0]
        if result.scores is not None:
            result.scores = DirectedScores(result.scores)
            result.scores.decoding_direction = direction
        return result

    @staticmethod
    def _is_pooled(generation_config: GenerationConfig) -> bool:
        """Whether titles of several searches, or of chance, are ranked together."""
        is_alone = generation_config.decoding_direction != "both" and generation_config.ranking == "own"
        return not is_alone or BidirSeq2SeqGenerationMixin._has_samples(generation_config)

    @staticmethod
    def _has_samples(generation_config: GenerationConfig) -> bool:
        """Whether titles are proposed that no beam has held."""
        return bool({*WITH_SAMPLES} & {*proposers_of(generation_config.proposals)})

    @staticmethod
    def _may_draw(generation_config: GenerationConfig) -> bool:
        """Whether titles may be drawn, to be proposed or compared with."""
        may_compare = generation_config.consensus_samples > 0 and may_ask_for_samples(generation_config.ranking)
        return may_compare or BidirSeq2SeqGenerationMixin._has_samples(generation_config)

    @staticmethod
    def _is_plain_search(
        input_ids: torch.LongTensor, generation_config: GenerationConfig, kwargs: dict[str, Any]
    ) -> bool:
        """Whether titles of one direction are searched for from their beginning on."""
        past = kwargs.get(CACHE_NAME)
        return (
            not generation_config.do_sample
            and input_ids.shape[1] == 1
            and isinstance(past, BidirSeq2SeqCache)
            and past.get_seq_length() == 0
            and not past.is_recording_past(0)
            and kwargs.get("streamer") is None
        )

    def _can_search_one_way(
        self,
        input_ids: torch.LongTensor,
        logits_processor: LogitsProcessorList,
        generation_config: GenerationConfig,
        kwargs: dict[str, Any],
    ) -> bool:
        """Whether a search in one direction is the plain case that `_search` is for."""
        asks = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
        details = generation_config.return_dict_in_generate and any(getattr(generation_config, x) for x in asks)
        # Greedy search processes logits where beam search processes log-probabilities.
        processable = generation_config.num_beams > 1 or forbidden_tokens(logits_processor, 1) is not None
        is_plain = self._is_plain_search(input_ids, generation_config, kwargs) and self.may_be_taken_apart
        return is_plain and not details and processable

    def compute_transition_scores(
        self,
        sequences: torch.LongTensor,
        scores: tuple[torch.Tensor, ...],
        beam_indices: torch.LongTensor | None = None,
        normalize_logits: bool = False,
        decoding_direction: str | None = None,
    ) -> torch.Tensor:
        """Scores of the tokens that one direction has written; a bidirectional output has them as `token_scores`.

        Args:
            sequences: `[R, L]`, in reading order, as `generate` returned them.
            scores: Of the same output (`output_scores=True`), a tensor `[rows, V]` for each step.
            beam_indices: `[R, L - 1]`, of the same output if it comes from a beam search.
            normalize_logits: Whether to turn scores into log-probabilities first.
            decoding_direction: `"l2r"` or `"r2l"`, which wrote them. Default: what `scores` know of it.

        Returns:
            `[R, L - 1]`, the score of each token after the start id, in reading order, the end's included.

        Raises:
            ValueError: If there are no scores of one direction, as in a bidirectional output.
        """
        if scores is None:
            raise ValueError(
                "there are no scores of one direction: a bidirectional output has token_scores instead, and "
                "others need output_scores=True"
            )
        if decoding_direction is None:
            decoding_direction = getattr(scores, "decoding_direction", "l2r")
        (direction,) = directions_of(self.config, decoding_direction)
        # Reading order and writing order are each other's mirror images, so one order serves both ways.
        written, order = direction.writing_order(sequences)
        token_scores = super().compute_transition_scores(written, scores, beam_indices, normalize_logits)
        # What is written in several pieces starts from the left, where both orders are the same.
        token_scores = token_scores.gather(1, order[:, 1 : token_scores.shape[1] + 1] - 1)
        is_padding = sequences[:, -token_scores.shape[1] :] == self.config.pad_token_id
        return token_scores.masked_fill(is_padding, 0)

    @takes_cache
    def _search(
        self,
        input_ids: torch.LongTensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        encoder_outputs: Any = None,
        past_key_values: BidirSeq2SeqCache | None = None,
        synced_gpus: bool = False,
        **kwargs: Any,
    ) -> GenerateBeamEncoderDecoderOutput | BidirBeamSearchOutput | torch.LongTensor:
        """The search of one direction, or of both in lock-step, each hypothesis of one reading all of the other; or
        several of these and what is drawn, ranked together.

        In one direction it is transformers' own greedy or beam search, result for result, with less work around it.

        Args:
            input_ids: `[B * K, 1]`, start ids.
            logits_processor, stopping_criteria: Of the only direction, or of both.
            encoder_outputs: Of the B documents.
            past_key_values: The empty past of the only decoder.
            synced_gpus: Whether to go on stepping until every process is done.
        """
        batch_size, direction = len(input_ids) // generation_config.num_beams, generation_config.decoding_direction
        words = self.words(encoder_outputs)
        next_tokens = self._next_tokens(words, encoder_outputs, generation_config.vocabulary_shortlist)

        def run(name: str, processors: Sequence, criteria: Sequence) -> tuple[Found, Beam, Any]:
            directions = directions_of(self.config, name)
            beam = self._start(directions, batch_size, criteria, generation_config, input_ids.device)
            records = [self._start_records(generation_config) for _ in directions]
            history = BeamHistory() if len(directions) == 2 and records[0].weights is not None else None
            steps = self.model.start_steps(encoder_outputs, name, need_twin_weights=history is not None)
            search(steps, next_tokens([own.name for own in directions]), beam, processors, records, goes_on, history)
            found = Found(beam.finished_paths[:, :, : beam.length], beam.finished_scores, directions, records, history)
            return found, beam, steps

        def goes_on(done: bool) -> bool:
            return self._has_unfinished_sequences(done, synced_gpus, device=input_ids.device)

        if self._is_pooled(generation_config):
            proposers, given = proposers_of(generation_config.proposals), (logits_processor, stopping_criteria)
            names = searches_in(proposers)
            # A processor of the user's may remember what it has seen, which must not be another search's.
            to_splice = _copied(logits_processor) if SPLICED in proposers else None
            to_draw = _copied(given) if self._may_draw(generation_config) else None
            asked = [given, *(_copied(given) for _ in names[1:])]
            runs = [run(name, _sides(name, one), _sides(name, two))[0] for name, (one, two) in zip(names, asked)]

            def draw(own: Direction, limits: torch.LongTensor) -> Found:
                (processors,), (criteria,) = (_sides(own.name, asked) for asked in to_draw)
                records = self._start_records(generation_config)
                # What looks at titles may count on all of them, and processes that keep in step on each other.
                any_number = records.is_empty and forbidden_tokens(processors, 1) is not None and not synced_gpus
                any_number = any_number and all(isinstance(own, FORGETFUL_CRITERIA) for own in criteria)

                def some(documents: torch.LongTensor) -> Found:
                    outputs = encoder_outputs.select(documents)
                    their_tokens = self._next_tokens(
                        self.words(outputs), outputs, generation_config.vocabulary_shortlist
                    )
                    return draw_titles(
                        self.model.start_steps(outputs, own.name),
                        their_tokens([own.name]),
                        own,
                        generation_config.consensus_samples,
                        limits[documents],
                        processors,
                        criteria,
                        records,
                        generation_config.length_penalty,
                        goes_on,
                    )

                together = DRAWN_TOGETHER if any_number and is_read_at_once(limits) else len(limits)
                return in_groups(some, limits, together)

            def obeys(sequences: torch.LongTensor) -> torch.BoolTensor:
                # What is read from the left is written so, too, unless there is but the other direction.
                own = directions_of(self.config, direction)[0]
                (processors,) = _sides(own.name, to_splice)
                written, _ = own.writing_order(sequences.flatten(0, 1))
                return may_be_written(written, processors, words.num_words, own.pad_id).view(sequences.shape[:2])

            return self._gather_results(runs, encoder_outputs, generation_config, draw, obeys)

        found, beam, steps = run(direction, [logits_processor], [stopping_criteria])
        count = generation_config.num_return_sequences
        sequences = found.paths[:, :count, :, 0].flatten(0, 1)
        sequences = sequences[:, : (sequences != self.config.pad_token_id).sum(1).amax()]
        if not generation_config.return_dict_in_generate:
            return sequences
        steps.leave_in(past_key_values)
        past_key_values.written = beam.running[:, :, :-1].flatten(0, 1)
        if generation_config.num_beams == 1:
            return GenerateEncoderDecoderOutput(sequences=sequences, **{CACHE_NAME: past_key_values})
        return GenerateBeamEncoderDecoderOutput(
            sequences=sequences,
            sequences_scores=found.scores[:, :count].flatten(),
            **{CACHE_NAME: past_key_values},
        )

    def _start(
        self,
        directions: Sequence[Direction],
        batch_size: int,
        criteria: Sequence[StoppingCriteriaList],
        generation_config: GenerationConfig,
        device: torch.device,
    ) -> Beam:
        """A beam of B documents, of one direction or both, that has yet to begin."""
        start_ids = torch.tensor([direction.start_id for direction in directions], device=device)
        num_beams, is_alone = generation_config.num_beams, generation_config.decoding_direction != "both"
        return Beam(
            start_ids.repeat_interleave(batch_size),
            num_beams,
            criteria,
            generation_config.max_length,
            pad_id=int(generation_config._pad_token_tensor),
            length_penalty=generation_config.length_penalty,
            # Greedy search ends with the first end, whatever is set for beams.
            early_stopping=(num_beams == 1 and is_alone) or generation_config.early_stopping,
            do_sample=generation_config.do_sample,
        )

    def _next_tokens(
        self, words: Words, encoder_outputs: Any, size: int | None
    ) -> Callable[[Sequence[str]], NextTokens]:
        """What scores the next tokens of some directions."""
        shortlist = None
        if size is not None and size < self.config.vocab_size:
            shortlist = Shortlist.of(self.config, encoder_outputs.source_words, self.prior, self.lm_head, size)
        return partial(words.next_tokens, shortlist)

    @staticmethod
    def _start_records(generation_config: GenerationConfig) -> StepRecords:
        if not generation_config.return_dict_in_generate:
            return StepRecords()
        asked = (generation_config.output_scores, generation_config.output_logits, generation_config.output_attentions)
        return StepRecords(*([] if is_asked else None for is_asked in asked))

    def _gather_results(
        self,
        runs: Sequence[Found],
        encoder_outputs: Any,
        generation_config: GenerationConfig,
        draw: Callable[[Direction, torch.LongTensor], Found],
        obeys: Callable[[torch.LongTensor], torch.BoolTensor],
    ) -> GenerateOutput | torch.LongTensor:
        """Merges what all searches found: one ranking, no sequence twice.

        `draw` gives others, for limits `[B]`; `obeys` says which of sequences `[B, n, L]` may be written.
        """
        pad_id, (rows, *_) = self.config.pad_token_id, encoder_outputs.last_hidden_state.shape
        device = encoder_outputs.last_hidden_state.device
        direction, drawn = generation_config.decoding_direction, list[Found]()
        directions = directions_of(self.config, direction)
        names = proposers_of(generation_config.proposals)
        if DRAWN in names:
            # What is longer than all that searches found takes longest, and has least in common with others.
            longest = [found.longest for found in runs]
            anything = torch.full((rows,), generation_config.max_length, device=device)
            # A title has a token, or an end, even where no search has found any.
            limits = torch.stack(longest).amax(0).clamp(min=2).minimum(anything) if runs else anything
            drawn = [draw(own, limits) for own in directions]

        titles = list[torch.LongTensor]()

        def others(limits: torch.LongTensor) -> torch.LongTensor:
            if not titles:
                # A document's rows in the searches have the same ones.
                longest = limits.view(rows, -1).amax(1)
                titles.append(_pooled([draw(own, longest) for own in directions], pad_id)["sequences"])
            return titles[0].repeat_interleave(len(limits) // rows, dim=0)

        def candidates_of(sequences: torch.LongTensor, scores: torch.Tensor) -> Candidates:
            return Candidates(
                sequences,
                scores,
                pad_id,
                generation_config.length_penalty,
                judge=lambda labels: self.sequence_log_probs(encoder_outputs, labels, direction),
                draw=others if generation_config.consensus_samples else None,
            )

        runs = [*runs, *drawn]
        pool = _pooled(runs, pad_id)
        if drawn:
            # They are the last of the pool.
            titles.append(pool["sequences"][:, -sum(found.scores.shape[1] for found in drawn) :])
        if SPLICED in names:
            # Scores are not asked for.
            ends = generation_config._eos_token_tensor if direction == "l2r" else None
            if ends is None:
                ends = torch.tensor([self.config.eos_token_id], device=device)
            pool = with_splices(pool, lambda them: consensus(candidates_of(them, them)), obeys, pad_id, ends)
        candidates = candidates_of(pool["sequences"], pool.pop("own_scores"))
        scores, order = candidates.ranked(generation_config.ranking)
        pool |= {f"{name}_log_probs": values for name, values in candidates.asked_log_probs.items()}

        # Where each returned sequence has a row of its own (sampling), that row gives its best.
        per_row = generation_config.num_return_sequences * rows // scores.shape[0]
        found = {name: select(values, order[:, :per_row]).flatten(0, 1) for name, values in pool.items()}
        # Where there are not so many titles, what fills up the rows is none.
        is_none = scores[:, :per_row] == IMPOSSIBLE
        is_none[:, 0] = False
        found["sequences"][:, 1:].masked_fill_(is_none.flatten()[:, None], pad_id)
        if "token_scores" in found:
            found["token_scores"].masked_fill_(is_none.flatten()[:, None], 0)
        length = (found["sequences"] != pad_id).sum(1).amax()
        sequences = found.pop("sequences")[:, :length]
        if not generation_config.return_dict_in_generate:
            return sequences
        written_by = ["r2l" if right else "l2r" for right in found.pop("from_right").tolist()]
        if len(runs) > 1 or SPLICED in names:
            # Rows of one search are not those of another.
            found.pop("beam_indices", None)
        for name, step_dim in (("token_scores", 1), ("beam_indices", 1), ("source_attentions", 2)):
            if name in found:
                found[name] = found[name].narrow(step_dim, 0, length - 1)
        return BidirBeamSearchOutput(
            sequences=sequences,
            sequences_scores=scores[:, :per_row].flatten(),
            directions=written_by,
            **self._steps_of(runs),
            encoder_hidden_states=encoder_outputs.hidden_states,
            **found,
        )

    @staticmethod
    def _steps_of(runs: Sequence[Found]) -> dict[str, Any]:
        """The history, and of an only search what was recorded of each step."""
        (history,) = [found.history for found in runs if len(found.directions) == 2] or [None]
        steps: dict[str, Any] = {"history": history}
        if len(runs) == 1:
            for direction, records in zip(runs[0].directions, runs[0].records):
                steps[f"{direction.name}_scores"] = _as_tuple(records.scores)
                steps[f"{direction.name}_logits"] = _as_tuple(records.logits)
        return steps


def _pooled(runs: Sequence[Found], pad_id: int) -> Pool:
    return merged([side for found in runs for side in found.pools()], pad_id)


def _sides(name: str, asked: Any) -> list[Any]:
    """Of processors or criteria of both directions those of the ones that a search writes in; of one its own."""
    if not isinstance(asked, (_TwoWayProcessors, _TwoWayCriteria)):
        return [asked]
    return [own for side, own in (("l2r", asked), ("r2l", asked.r2l)) if name in (side, "both")]


def _copied(given: Any, may_share: bool = False) -> Any:
    """Processors and criteria for another search, which start from what they know by now; if they cannot be copied and
    `may_share`, the same ones."""
    try:
        return copy.deepcopy(given)
    except (TypeError, RuntimeError, copy.Error) as error:
        if may_share:
            return given
        raise ValueError(
            f"a logits processor or stopping criterion that was given cannot be copied ({error}), and several "
            "searches, or titles that are drawn, each need theirs: use a single search, or give it a __deepcopy__, "
            "which may return itself if it remembers nothing of the titles"
        ) from error


def _as_tuple(steps: list[torch.Tensor] | None) -> tuple[torch.Tensor, ...] | None:
    return None if steps is None else tuple(steps)


__all__ = ["BidirBeamSearchOutput", "BidirSeq2SeqGenerationMixin", "DirectedScores", "StopTexts"]

"""Generation in either direction and in both: the seed of a title grows from its two ends at once.

One direction runs through transformers' own `generate`; right-to-left starts with the end id, ends with the start id,
and its results are turned round. Both directions run the bidirectional beam search below (Su Jianlin,
https://kexue.fm/archives/6877, after Zhou, Zhang and Zong 2019, https://arxiv.org/abs/1905.04847).

Letters: B documents, K beams per direction, V vocabulary, L length of a sequence with its start id.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.logits_process import SuppressTokensLogitsProcessor
from transformers.generation.utils import GenerateBeamEncoderDecoderOutput

from .cache_bidir_seq2seq import BidirSeq2SeqCache

DIRECTIONS = ("l2r", "r2l", "both")
IMPOSSIBLE = float("-inf")


@dataclass
class BidirBeamSearchOutput(GenerateBeamEncoderDecoderOutput):
    """What the bidirectional search found.

    Args:
        sequences: `[B * num_return_sequences, L]`, in reading order, best first for each document.
        sequences_scores: `[B * num_return_sequences]`, what the candidates were ranked by: log-probability divided by
            length ** length_penalty, of the direction that wrote it, or the mean of both with `joint_rescoring`.
        directions: For each sequence the direction that wrote it, `"l2r"` or `"r2l"`.
    """

    directions: list[str] | None = None


class Beam:
    """One direction's hypotheses for every document, with the rules of transformers' own beam search.

    A hypothesis that ends leaves the beam for a pool of the K best finished ones. A document is closed when no
    running hypothesis can enter its pool any more; what happens to other documents does not matter to it.

    Attributes:
        sequences: `[B, K, max_length]` running hypotheses, best first; `length` of each is filled.
        scores: `[B, K]` their summed log-probabilities; minus infinity for one that does not exist.
        finished_sequences, finished_scores: The pool, best first; scores are divided by length ** length_penalty.
        open: `[B, 1]` bool.
    """

    def __init__(
        self,
        batch_size: int,
        num_beams: int,
        start_id: int,
        generation_config: GenerationConfig,
        device: torch.device,
    ):
        self.max_length = generation_config.max_length
        self.length_penalty = generation_config.length_penalty
        self.early_stopping = generation_config.early_stopping
        pad_id = int(generation_config._pad_token_tensor)
        self.sequences = torch.full((batch_size, num_beams, self.max_length), pad_id, device=device)
        self.sequences[:, :, 0] = start_id
        self.length = 1
        # One hypothesis to start with: K equal ones would propose the same tokens K times.
        self.scores = torch.full((batch_size, num_beams), IMPOSSIBLE, device=device)
        self.scores[:, 0] = 0
        self.finished_sequences = self.sequences.clone()
        self.finished_scores = torch.full_like(self.scores, IMPOSSIBLE)
        self.open = torch.ones(batch_size, 1, dtype=torch.bool, device=device)

    @property
    def last_ids(self) -> torch.LongTensor:
        """`[B, K]`, the last token of each running hypothesis."""
        return self.sequences[:, :, self.length - 1]

    @property
    def running(self) -> torch.LongTensor:
        """`[B * K, length]`, the running hypotheses as logits processors want them."""
        return self.sequences[:, :, : self.length].flatten(0, 1)

    @property
    def alive(self) -> torch.BoolTensor:
        """`[B, K]`, which hypotheses exist."""
        return self.scores > IMPOSSIBLE

    def advance(self, log_probs: torch.Tensor, stopping_criteria: StoppingCriteriaList) -> torch.LongTensor:
        """Continues every hypothesis by one token.

        Args:
            log_probs: `[B, K, V]` of the next token.
            stopping_criteria: Say which candidates end here, the end id and the maximum length among them.

        Returns:
            `[B, K]`, which hypothesis each new one continues.
        """
        batch_size, num_beams, vocab_size = log_probs.shape
        # 2K candidates: each hypothesis has one end, so at least K of them do not end.
        totals = (log_probs + self.scores[:, :, None]).flatten(1)
        scores, flat = totals.topk(min(2 * num_beams, totals.shape[1]))
        parents = flat // vocab_size
        sequences = _select(self.sequences, parents)
        sequences[:, :, self.length] = flat % vocab_size
        self.length += 1

        candidates = sequences[:, :, : self.length].flatten(0, 1)
        ends = stopping_criteria(candidates, None).view(batch_size, -1)
        self._keep_finished(sequences[:, :num_beams], scores[:, :num_beams], ends[:, :num_beams])

        self.scores, order = scores.masked_fill(ends, IMPOSSIBLE).topk(num_beams)
        self.sequences = _select(sequences, order)
        self._close()
        return parents.gather(1, order)

    def _keep_finished(self, sequences: torch.Tensor, scores: torch.Tensor, ends: torch.Tensor):
        normalised = scores / (self.length - 1) ** self.length_penalty
        normalised = normalised.masked_fill(~(ends & self.open), IMPOSSIBLE)
        pool_size = self.scores.shape[1]
        merged = torch.cat([self.finished_scores, normalised], dim=1)
        self.finished_scores, order = merged.topk(pool_size)
        self.finished_sequences = _select(torch.cat([self.finished_sequences, sequences], dim=1), order)

    def _close(self):
        worst = self.finished_scores.amin(1, keepdim=True)
        length = self.length - 1
        if self.early_stopping == "never" and self.length_penalty > 0:
            length = self.max_length - 1
        improvable = self.scores[:, :1] / length**self.length_penalty > worst
        if self.early_stopping is True:
            improvable &= worst == IMPOSSIBLE
        self.open = self.open & improvable & (self.length < self.max_length)


class BidirSeq2SeqGenerationMixin:
    """Adds `decoding_direction` and `joint_rescoring` to `generate`. Goes before `GenerationMixin`.

    decoding_direction (`"both"`, `"l2r"` or `"r2l"`): The bidirectional beam search, which is deterministic, or one
        decoder alone with its twin off. Default: what the model has.
    joint_rescoring (`bool`): Ranks what the bidirectional search proposes by the mean of both directions'
        log-probabilities with the twin off, each a proper model of the title (after Liu et al. 2016, "Agreement on
        Target-bidirectional Neural Machine Translation"). Needs a model trained with `twin_dropout` above 0.
    """

    def init_generation_defaults(self):
        """Puts our flags on `generation_config`, so that `generate` takes them and checkpoints keep them."""
        self.generation_config.decoding_direction = self.config.decoder_directions
        self.generation_config.joint_rescoring = False
        # A config derived from the model's would lose custom entries when it is loaded again.
        self.generation_config._from_model_config = False

    def _prepare_generation_config(self, generation_config: GenerationConfig | None, **kwargs):
        ours = {name: kwargs.pop(name) for name in ("decoding_direction", "joint_rescoring") if name in kwargs}
        generation_config, model_kwargs = super()._prepare_generation_config(generation_config, **kwargs)
        direction = ours.get("decoding_direction", getattr(generation_config, "decoding_direction", None))
        rescoring = ours.get("joint_rescoring", getattr(generation_config, "joint_rescoring", None))
        generation_config.decoding_direction = direction or self.config.decoder_directions
        generation_config.joint_rescoring = bool(rescoring) and generation_config.decoding_direction == "both"
        self._validate_direction(generation_config, asked_to_rescore=bool(ours.get("joint_rescoring")))
        return generation_config, model_kwargs

    def _validate_direction(self, generation_config: GenerationConfig, asked_to_rescore: bool):
        direction, built = generation_config.decoding_direction, self.config.decoder_directions
        if direction not in DIRECTIONS:
            raise ValueError(f"decoding_direction={direction!r} must be one of {', '.join(DIRECTIONS)}")
        if built not in ("both", direction):
            raise ValueError(f"decoding_direction={direction!r}: this model writes {built!r} only")
        if asked_to_rescore and direction != "both":
            raise ValueError(f"joint_rescoring needs decoding_direction='both', not {direction!r}")
        if generation_config.joint_rescoring and self.config.twin_dropout == 0:
            raise ValueError(
                "joint_rescoring needs directions that have learned to write alone, and this model has "
                "twin_dropout=0: train with twin_dropout=0.5, or leave joint_rescoring out"
            )
        if direction == "l2r":
            return
        alternative = "pass decoding_direction='l2r'"
        for name in ("forced_bos_token_id", "begin_suppress_tokens", "stop_strings"):
            if getattr(generation_config, name, None) is not None:
                raise ValueError(f"{name} speaks of the left end, where {direction!r} does not start: {alternative}")
        if direction == "both" and generation_config.do_sample:
            raise ValueError(f"the bidirectional search does not sample: {alternative} or 'r2l', or do_sample=False")
        if direction == "both" and generation_config.num_return_sequences > generation_config.num_beams:
            raise ValueError(
                f"num_return_sequences={generation_config.num_return_sequences} is more than "
                f"num_beams={generation_config.num_beams}: raise num_beams"
            )

    def _prepare_special_tokens(self, generation_config: GenerationConfig, *args, **kwargs):
        super()._prepare_special_tokens(generation_config, *args, **kwargs)
        if generation_config.decoding_direction == "r2l":
            self._turn_round(generation_config)

    def _turn_round(self, generation_config: GenerationConfig):
        """Makes a prepared config speak of a title written from the right: ends swapped, token orders reversed."""
        device = generation_config._pad_token_tensor.device
        generation_config._decoder_start_token_tensor = torch.tensor(self.config.eos_token_id, device=device)
        generation_config._eos_token_tensor = torch.tensor([self.config.bos_token_id], device=device)
        if generation_config.forced_eos_token_id is not None:
            generation_config.forced_eos_token_id = self.config.bos_token_id
        if generation_config.bad_words_ids is not None:
            generation_config.bad_words_ids = [words[::-1] for words in generation_config.bad_words_ids]
        if generation_config.sequence_bias is not None:
            bias = generation_config.sequence_bias
            pairs = bias.items() if isinstance(bias, dict) else bias
            generation_config.sequence_bias = [[list(ids)[::-1], value] for ids, value in pairs]

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        # Hypotheses of one document share its encoding (rows R = B * G), so it is never copied.
        encoder_outputs = model_kwargs.pop("encoder_outputs")
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder=False, input_ids=input_ids, **model_kwargs
        )
        return input_ids, {**model_kwargs, "encoder_outputs": encoder_outputs}

    def _prepare_cache_for_generation(self, generation_config: GenerationConfig, model_kwargs: dict, *args):
        direction = generation_config.decoding_direction
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                f"cache_implementation={generation_config.cache_implementation!r}: this model keeps a recurrent "
                "state; leave cache_implementation out"
            )
        if direction == "both":
            return
        model_kwargs["decoding_direction"] = direction
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = BidirSeq2SeqCache(self.config.decoder_layers)

    def _get_logits_processor(self, generation_config: GenerationConfig, *args, **kwargs) -> LogitsProcessorList:
        direction = generation_config.decoding_direction
        if direction != "l2r" and kwargs.get("prefix_allowed_tokens_fn") is not None:
            raise ValueError("prefix_allowed_tokens_fn reads titles from the left: pass decoding_direction='l2r'")
        processors = super()._get_logits_processor(generation_config, *args, **kwargs)
        processors.append(self._never_written("r2l" if direction == "r2l" else "l2r", kwargs.get("device")))
        if direction == "both":
            mirrored = copy.copy(generation_config)
            self._turn_round(mirrored)
            mirrored.decoding_direction = "r2l"
            generation_config._r2l_config = mirrored
            generation_config._r2l_logits_processor = self._get_logits_processor(mirrored, *args, **kwargs)
        return processors

    def _never_written(self, direction: str, device) -> SuppressTokensLogitsProcessor:
        start_id = self.config.bos_token_id if direction == "l2r" else self.config.eos_token_id
        return SuppressTokensLogitsProcessor(
            [self.config.pad_token_id, self.config.unk_token_id, start_id], device=device or self.device
        )

    def _get_stopping_criteria(self, generation_config: GenerationConfig, *args, **kwargs) -> StoppingCriteriaList:
        criteria = super()._get_stopping_criteria(generation_config, *args, **kwargs)
        if generation_config.decoding_direction == "both":
            generation_config._r2l_stopping_criteria = super()._get_stopping_criteria(
                generation_config._r2l_config, *args, **kwargs
            )
        return criteria

    def _sample(self, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        return self._decode(
            super()._sample, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs
        )

    def _beam_search(self, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        return self._decode(
            super()._beam_search, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs
        )

    def _decode(self, one_direction, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        direction = generation_config.decoding_direction
        if direction != "l2r":
            if kwargs.get("streamer") is not None:
                raise ValueError("a streamer shows a title from the left: pass decoding_direction='l2r'")
            if input_ids.shape[1] > 1:
                raise ValueError(
                    f"decoder_input_ids fix the left end, where {direction!r} does not start: "
                    "pass decoding_direction='l2r'"
                )
        search = self._bidirectional_search if direction == "both" else one_direction
        result = search(input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)
        if direction != "both":
            as_dict = not isinstance(result, torch.Tensor)
            sequences = self._clean(result.sequences if as_dict else result, direction)
            if as_dict:
                result.sequences = sequences
            return result if as_dict else sequences
        return result

    def _clean(self, sequences: torch.LongTensor, direction: str) -> torch.LongTensor:
        """One direction's raw sequences `[R, L]` to reading order, padded after the end.

        A sequence is its start id, the content, and its end id if it came that far.
        """
        start_id, end_id = self.config.bos_token_id, self.config.eos_token_id
        own_end = end_id if direction == "l2r" else start_id
        positions = torch.arange(sequences.shape[1], device=sequences.device)
        is_end = (sequences == own_end) & (positions > 0)
        ended = is_end.any(1, keepdim=True)
        # Content stands at 1..size; pads at the tail of one that did not end are no content.
        unended_size = ((sequences != self.config.pad_token_id) * positions).amax(1, keepdim=True)
        size = torch.where(ended, is_end.int().argmax(1, keepdim=True) - 1, unended_size)
        source = (
            positions.expand_as(sequences)
            if direction == "l2r"
            else (size + 1 - positions).clamp(0, sequences.shape[1] - 1)
        )
        content = sequences.gather(1, source)
        is_content = (positions > 0) & (positions <= size)
        cleaned = torch.where(is_content, content, self.config.pad_token_id)
        cleaned[:, 0] = start_id
        return torch.where(ended & (positions == size + 1), end_id, cleaned)

    def _bidirectional_search(
        self,
        input_ids: torch.LongTensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        encoder_outputs=None,
        synced_gpus: bool = False,
        **kwargs,
    ) -> BidirBeamSearchOutput | torch.LongTensor:
        """Two beams in lock-step: at each step each hypothesis of one reads all of the other.

        Args:
            input_ids: `[B * K, 1]`, start ids.
            logits_processor, stopping_criteria: Of the left-to-right direction; the right-to-left ones are on
                `generation_config`.
            encoder_outputs: Of the B documents.
            synced_gpus: Whether to go on stepping until every process is done.
        """
        num_beams = generation_config.num_beams
        batch_size = input_ids.shape[0] // num_beams
        beam_args = (generation_config, input_ids.device)
        l2r = Beam(batch_size, num_beams, self.config.bos_token_id, *beam_args)
        r2l = Beam(batch_size, num_beams, self.config.eos_token_id, *beam_args)
        cache = self.model.start_twins(encoder_outputs)
        prior = self.source_prior(encoder_outputs)
        done = False
        while self._has_unfinished_sequences(done, synced_gpus, device=input_ids.device):
            l2r_log_probs, r2l_log_probs = self._step_log_probs(l2r, r2l, cache, prior)
            if done:
                continue
            l2r_log_probs = logits_processor(l2r.running, l2r_log_probs)
            r2l_log_probs = generation_config._r2l_logits_processor(r2l.running, r2l_log_probs)
            shape = (batch_size, num_beams, -1)
            l2r_parents = l2r.advance(l2r_log_probs.view(shape), stopping_criteria)
            r2l_parents = r2l.advance(r2l_log_probs.view(shape), generation_config._r2l_stopping_criteria)
            done = not bool((l2r.open | r2l.open).any())
            if not done:
                cache.reorder(l2r_parents, r2l_parents)
        return self._gather_results(l2r, r2l, encoder_outputs, generation_config)

    def _step_log_probs(self, l2r: Beam, r2l: Beam, cache, prior) -> tuple[torch.Tensor, torch.Tensor]:
        """`[B * K, V]` log-probabilities of each direction's next token, averaged over the living partners."""
        l2r_features, r2l_features = self.model.step_twins(l2r.last_ids, r2l.last_ids, cache)
        log_probs = []
        for features, partner_dim, partner in ((l2r_features, 2, r2l), (r2l_features, 1, l2r)):
            probs = self.output_logits(features, prior).float().softmax(-1)
            # Hypotheses that do not exist (in a vocabulary smaller than the beam) have no say, unless none exists.
            alive = partner.alive | ~partner.alive.any(1, keepdim=True)
            weights = alive.float() / alive.sum(1, keepdim=True)
            weights = weights[:, None, :, None] if partner_dim == 2 else weights[:, :, None, None]
            mean = (probs * weights).sum(partner_dim)
            log_probs.append(mean.clamp(min=torch.finfo(mean.dtype).tiny).log().flatten(0, 1))
        return log_probs[0], log_probs[1]

    def _gather_results(self, l2r: Beam, r2l: Beam, encoder_outputs, generation_config):
        """Merges both pools: one ranking, no sequence twice."""
        batch_size, num_beams, _ = l2r.finished_sequences.shape
        sequences = torch.cat(
            [
                self._clean(beam.finished_sequences.flatten(0, 1), direction).view(batch_size, num_beams, -1)
                for beam, direction in ((l2r, "l2r"), (r2l, "r2l"))
            ],
            dim=1,
        )
        scores = torch.cat([l2r.finished_scores, r2l.finished_scores], dim=1)
        from_right = torch.arange(2 * num_beams, device=scores.device) >= num_beams
        from_right = from_right.expand_as(scores)
        if generation_config.joint_rescoring:
            scores = self._joint_scores(sequences, encoder_outputs, generation_config.length_penalty).where(
                scores > IMPOSSIBLE, IMPOSSIBLE
            )
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        sequences, from_right = _select(sequences, order), from_right.gather(1, order)

        same = (sequences[:, :, None] == sequences[:, None]).all(-1)
        repeats = same.tril(-1).any(-1)
        scores, order = scores.masked_fill(repeats, IMPOSSIBLE).sort(dim=1, descending=True, stable=True)
        order = order[:, : generation_config.num_return_sequences]
        sequences = _select(sequences, order).flatten(0, 1)
        written = (sequences != self.config.pad_token_id).sum(1).amax()
        sequences = sequences[:, :written]
        if not generation_config.return_dict_in_generate:
            return sequences
        return BidirBeamSearchOutput(
            sequences=sequences,
            sequences_scores=scores[:, : generation_config.num_return_sequences].flatten(),
            directions=["r2l" if right else "l2r" for right in from_right.gather(1, order).flatten().tolist()],
            encoder_hidden_states=encoder_outputs.hidden_states,
        )

    def _joint_scores(self, sequences: torch.LongTensor, encoder_outputs, length_penalty: float) -> torch.Tensor:
        """`[B, M, L]` candidates to `[B, M]`: the mean of both directions' log-probabilities, length-normalised."""
        labels = sequences[:, :, 1:].flatten(0, 1)
        labels = labels.masked_fill(labels == self.config.pad_token_id, -100)
        log_probs = self.sequence_log_probs(encoder_outputs, labels)
        lengths = (labels != -100).sum(1).clamp(min=1)
        joint = (log_probs["l2r"] + log_probs["r2l"]) / 2 / lengths**length_penalty
        return joint.view(sequences.shape[:2])


def _select(x: torch.Tensor, index: torch.LongTensor) -> torch.Tensor:
    """`x` `[B, M, L]` at the entries `index` `[B, K]` of its second dimension."""
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))


__all__ = ["BidirBeamSearchOutput", "BidirSeq2SeqGenerationMixin"]

"""Configuration of the bidirectional LSTM/GRU encoder-decoder: every field, its meaning and its check."""

import copy
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

# The newest format that this code can read. It grows by one when a change makes older code misread a checkpoint.
FORMAT_VERSION = 3
# Older code would look for recurrent layers in the place of another encoder, and draw them at random.
OTHER_ENCODERS_FORMAT = 2
# It would draw the encoders of both directions at random, which it does not know.
TWO_ENCODERS_FORMAT = 3

# What differs between the published Keras programs ("the reference") and our defaults, each with the reason:
# * layer_norm_eps: 1e-14 lets a near-constant vector blow up its gradient; 1e-5 is torch's own default.
# * twin_memory: there the right-to-left side reads the left-to-right side's *concatenated* features, because a
#   variable is reused; the symmetric form is what the accompanying text describes.
# * twin_dropout: 0 makes teacher-forced training show each decoder the second half of its own answer.
# * prior_initial_scale: the prior has one number a word, which an optimiser moves slowly; at 1 a word of the source
#   starts only half a nat above any other.
# * use_copy: they have no copies; their prior alone favours words of the source.
# * prior_special_tokens: an unknown character in the source should not make an unknown one likelier in the title.
REFERENCE_PRESET: dict[str, Any] = {
    "embedding_size": 128,
    "hidden_size": 128,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_attention_heads": 8,
    "attention_head_size": 16,
    "layer_norm_eps": 1e-14,
    "twin_memory": "features",
    "twin_dropout": 0.0,
    "dropout": 0.0,
    "label_smoothing": 0.0,
    "prior_initial_scale": 1.0,
    "prior_special_tokens": True,
    "use_copy": False,
}


@strict
class BidirSeq2SeqConfig(PreTrainedConfig):
    r"""
    Configuration of a [`BidirSeq2SeqModel`].

    The defaults are a small twin model (about 1.1 M parameters beside the vocabulary's); `reference()` gives the
    published Keras programs' own settings.

    Args:
        vocab_size (`int`): Number of token ids `V`; source, title and both directions share one vocabulary.
        embedding_size (`int`): Width of the shared token embedding, and of the features before the vocabulary.
        hidden_size (`int`): Width `H` of encoder and decoders; even, as each encoder direction has half of it.
        encoder_type (`"rnn"`, `"cnn"`, `"self_attention"` or `"pretrained"`): What the layers of the encoder are made
            of: recurrent cells that read from both ends, convolutions over neighbouring tokens, or attention of every
            token to every token, whose heads are as many and as wide as those of the decoders. Or an encoder of
            transformers in their place, see [`BidirSeq2SeqForConditionalGeneration.from_pretrained_encoder`].
        encoder_config (`dict`): Settings of the pretrained encoder, its `model_type` among them.
        encoder_layers (`int`): Layers of the encoder, unless it is pretrained.
        encoder_kernel_size (`int`): Tokens that a convolution of the encoder looks at; odd.
        share_encoder (`bool`): Whether both decoders read the states of one encoder, or each those of its own, as wide
            and deep as one alone. Both encoders know words by the same vectors.
        encoder_ffn_dim (`int`): Width between the two linear layers after each self-attention of the encoder.
        decoder_layers (`int`): Recurrent layers of each decoder.
        num_attention_heads (`int`): Heads of source attention and twin attention.
        attention_head_size (`int`): Width of each head.
        rnn_type (`"lstm"` or `"gru"`): The recurrent cell of the decoders, and of an encoder of type `"rnn"`.
        decoder_directions (`"both"`, `"l2r"` or `"r2l"`): Twin decoders, or one decoder that writes from the left
            (`"l2r"`) or from the right (`"r2l"`).
        use_attention (`bool`): Whether decoders attend to the source. Without it the document reaches them only as
            the pooled vector that modulates their LayerNorms.
        use_prior (`bool`): Whether words of the source get a learned bonus in the output.
        prior_initial_scale (`float`): Bonus of a source word before training; half of it reaches the logits.
        prior_special_tokens (`bool`): Whether pad, unknown, start and end ids in the source count for the prior.
        use_copy (`bool`): Whether words may be copied from the source by an attention to its tokens, beside being
            chosen from the vocabulary; also words that the vocabulary does not have.
        copy_context (`int`): So many of the last words written are looked for in the source: what follows them there
            is likely to be copied next.
        twin_dropout (`float`): Probability that a training row gets no twin context (zeros in its place). Above 0
            the same weights are an honest left-to-right model, an honest right-to-left model and a twin.
        twin_partner (`"gold"`, `"own"`, `"written"` or `"none"`): What a decoder reads of its twin in training: the
            true words, half of which are its own answer; what the twin, alone, writes itself, its likeliest word at
            each step; what an earlier model has written (`l2r_partner_ids`, `r2l_partner_ids`); or nothing: then
            both write alone, and only their titles are ranked together.
        twin_memory (`"hidden"` or `"features"`): What the right-to-left side reads of its twin: its hidden states
            (symmetric), or its concatenated features (the reference's quirk). Left-to-right reads hidden states.
        dropout (`float`): Dropout on embeddings, between recurrent layers and on the decoders' features.
        label_smoothing (`float`): Label smoothing of the training loss, both directions.
        layer_norm_eps (`float`): Added to the variance in every LayerNorm.
        tie_word_embeddings (`bool`): Whether the output matrix is the embedding matrix.
        use_cache (`bool`): Whether generation keeps the recurrent state (one step costs one step).
        pad_token_id, unk_token_id, bos_token_id, eos_token_id (`int`): Special ids, all different. Right-to-left
            decoding starts with `eos_token_id` and ends with `bos_token_id`.
        decoder_start_token_id (`int`): First decoder input of left-to-right decoding; equals `bos_token_id`.
        format_version (`int`): Version of the checkpoint format, the oldest that can hold it; checked on load.

    Raises:
        ValueError: If a value is out of range or two special ids clash; the message names value and remedy.
    """

    model_type = "bidir_seq2seq"
    keys_to_ignore_at_inference = [
        "past_key_values",
        "cache",
        "r2l_logits",
        "decoder_hidden_states",
        "decoder_attentions",
        "cross_attentions",
        "encoder_last_hidden_state",
        "encoder_hidden_states",
        "encoder_attentions",
    ]
    attribute_map = {"num_hidden_layers": "decoder_layers"}

    vocab_size: int = 8000
    embedding_size: int = 128
    hidden_size: int = 128
    encoder_type: str = "rnn"
    encoder_config: dict[str, Any] | None = None
    encoder_layers: int = 2
    encoder_kernel_size: int = 15
    encoder_ffn_dim: int = 512
    share_encoder: bool = True
    decoder_layers: int = 2
    num_attention_heads: int = 8
    attention_head_size: int = 16
    rnn_type: str = "lstm"
    decoder_directions: str = "both"
    use_attention: bool = True
    use_prior: bool = True
    prior_initial_scale: float | int = 6.0
    prior_special_tokens: bool = False
    use_copy: bool = False
    copy_context: int = 2
    twin_dropout: float | int = 0.5
    twin_partner: str = "gold"
    twin_memory: str = "hidden"
    dropout: float | int = 0.0
    label_smoothing: float | int = 0.0
    layer_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    is_encoder_decoder: bool = True
    use_cache: bool = True
    pad_token_id: int | None = 0
    unk_token_id: int | None = 1
    bos_token_id: int | None = 2
    eos_token_id: int | None = 3
    decoder_start_token_id: int | None = 2
    format_version: int = 1

    @classmethod
    def reference(cls, **overrides: Any) -> "BidirSeq2SeqConfig":
        """The published Keras programs' settings (`REFERENCE_PRESET`); `overrides` are ordinary config fields."""
        return cls(**{**REFERENCE_PRESET, **overrides})

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name in ("vocab_size", "embedding_size", "hidden_size", "encoder_layers", "decoder_layers"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        for name in ("num_attention_heads", "attention_head_size", "copy_context", "encoder_ffn_dim"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        _check(self.hidden_size % 2 == 0, "hidden_size", self.hidden_size, "must be even: half for each direction")
        self._validate_encoder()
        choices = {
            "encoder_type": ("rnn", "cnn", "self_attention", "pretrained"),
            "rnn_type": ("lstm", "gru"),
            "decoder_directions": ("both", "l2r", "r2l"),
            "twin_partner": ("gold", "own", "written", "none"),
            "twin_memory": ("hidden", "features"),
        }
        for name, allowed in choices.items():
            _check(getattr(self, name) in allowed, name, getattr(self, name), f"must be one of {', '.join(allowed)}")
        _check(0 <= self.twin_dropout <= 1, "twin_dropout", self.twin_dropout, "is a probability: 0 to 1")
        _check(
            self.twin_partner == "gold" or (self.twin_memory == "hidden" and self.twin_dropout > 0),
            "twin_partner",
            self.twin_partner,
            "needs twin_memory='hidden', and twin_dropout above 0, so that decoders learn to write alone",
        )
        for name in ("dropout", "label_smoothing"):
            _check(0 <= getattr(self, name) < 1, name, getattr(self, name), "must be at least 0 and below 1")
        for name in ("layer_norm_eps", "prior_initial_scale"):
            _check(getattr(self, name) > 0, name, getattr(self, name), "must be above 0")
        if self.encoder_type != "rnn":
            self.format_version = max(self.format_version, OTHER_ENCODERS_FORMAT)
        if not self.share_encoder:
            self.format_version = max(self.format_version, TWO_ENCODERS_FORMAT)
        _check(
            self.format_version <= FORMAT_VERSION,
            "format_version",
            self.format_version,
            f"is newer than this code reads ({FORMAT_VERSION}): upgrade with `pip install -U bidir_seq2seq`",
        )
        self._validate_special_ids()

    def save_pretrained(self, save_directory: str, push_to_hub: bool = False, **kwargs: Any) -> None:
        """As every config's, without an `auto_map` that came from the Hub, unless the code it names is saved too."""
        config = self
        if self._auto_class is None and getattr(self, "auto_map", None):
            config = copy.copy(self)
            del config.auto_map
        super(BidirSeq2SeqConfig, config).save_pretrained(save_directory, push_to_hub, **kwargs)

    def _validate_encoder(self) -> None:
        kernel, head_size = self.encoder_kernel_size, self.attention_head_size
        _check(kernel >= 1 and kernel % 2 == 1, "encoder_kernel_size", kernel, "must be odd: as many from both sides")
        _check(
            (self.encoder_config is not None) == (self.encoder_type == "pretrained"),
            "encoder_config",
            self.encoder_config,
            f"does not go with encoder_type={self.encoder_type!r}: a pretrained encoder has one, which "
            "BidirSeq2SeqForConditionalGeneration.from_pretrained_encoder fills in, and no other encoder has",
        )
        _check(
            self.share_encoder or (self.decoder_directions == "both" and self.encoder_type != "pretrained"),
            "share_encoder",
            self.share_encoder,
            f"does not go with decoder_directions={self.decoder_directions!r} and encoder_type={self.encoder_type!r}: "
            "it gives each of two decoders an encoder of its own, which is not pretrained; leave it out",
        )
        _check(
            self.encoder_type != "self_attention" or head_size % 2 == 0,
            "attention_head_size",
            head_size,
            "must be even for encoder_type='self_attention', which turns channels by pairs",
        )

    def _validate_special_ids(self) -> None:
        owners: dict[int, str] = {}
        for name in ("pad_token_id", "unk_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            _check(
                value is not None and 0 <= value < self.vocab_size,
                name,
                value,
                f"must be an id in the vocabulary (0 to {self.vocab_size - 1})",
            )
            if value in owners:
                raise ValueError(
                    f"{owners[value]} and {name} are both {value}: the four special tokens need different ids, "
                    "or decoding could never tell an end from padding"
                )
            owners[value] = name
        _check(
            self.decoder_start_token_id == self.bos_token_id,
            "decoder_start_token_id",
            self.decoder_start_token_id,
            f"must equal bos_token_id ({self.bos_token_id}): it also ends right-to-left decoding",
        )


def _check(condition: bool, name: str, value: object, remedy: str) -> None:
    if not condition:
        raise ValueError(f"{name}={value!r} {remedy}")


__all__ = ["FORMAT_VERSION", "REFERENCE_PRESET", "BidirSeq2SeqConfig"]

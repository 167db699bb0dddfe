"""Our classes under transformers' own common tests. Run by `run.py`, which provides `transformers_tests`.

The name keeps the file out of the ordinary test run.
"""

import inspect
import tempfile
import unittest

import torch
from transformers import PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)
from transformers_tests.generation.test_utils import GenerationTesterMixin
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin
from transformers_tests.test_tokenization_common import TokenizerTesterMixin

from bidir_seq2seq import BidirSeq2SeqConfig, BidirSeq2SeqForConditionalGeneration, BidirSeq2SeqModel
from bidir_seq2seq.tokenization import build_bpe_tokenizer, build_char_tokenizer

# The common tests choose labels and expectations by these names; `AutoModel.register` does not touch them.
MODEL_MAPPING_NAMES[BidirSeq2SeqConfig.model_type] = BidirSeq2SeqModel.__name__
MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES[BidirSeq2SeqConfig.model_type] = (
    BidirSeq2SeqForConditionalGeneration.__name__
)


class BidirSeq2SeqModelTester:
    """Makes tiny models and batches.

    Embedding and hidden size are equal because the common tests expect one size of all hidden states.
    """

    batch_size = 5
    seq_length = 7
    hidden_size = 16
    num_hidden_layers = 2
    num_attention_heads = 2
    vocab_size = 40
    is_training = True

    def __init__(self, parent, **settings):
        self.parent, self.settings = parent, settings

    def get_config(self):
        return BidirSeq2SeqConfig(
            vocab_size=self.vocab_size,
            embedding_size=self.hidden_size,
            hidden_size=self.hidden_size,
            encoder_layers=self.num_hidden_layers,
            decoder_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            attention_head_size=4,
            **self.settings,
        )

    def prepare_config_and_inputs_for_common(self):
        shape = (self.batch_size, self.seq_length)
        input_ids, decoder_input_ids = (torch.randint(4, self.vocab_size, shape) for _ in range(2))
        attention_mask = torch.ones(shape, dtype=torch.long)
        attention_mask[1, -2:] = 0
        attention_mask[2, :3] = 0
        return self.get_config(), {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "decoder_input_ids": decoder_input_ids,
            "decoder_attention_mask": torch.ones_like(decoder_input_ids),
        }


class CommonModelTests(ModelTesterMixin, GenerationTesterMixin):
    """The common tests, for one kind of model."""

    settings: dict = {}
    all_model_classes = (BidirSeq2SeqModel, BidirSeq2SeqForConditionalGeneration)
    is_encoder_decoder = True
    # Only decoders attend, and only to the source; `test_attention_outputs` below covers that.
    has_attentions = False
    # They tell a model's age by a copyright line, which our files do not have.
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self):
        self.model_tester = BidirSeq2SeqModelTester(self, **self.settings)

    def test_attention_outputs(self):
        """One set of source attention weights: the layers share one attention, after the last of them."""
        tester = self.model_tester
        for model_class in self.all_model_classes:
            config, inputs = tester.prepare_config_and_inputs_for_common()
            outputs = model_class(config).eval()(**inputs, output_attentions=True)
            self.assertIsNone(outputs.encoder_attentions)
            self.assertIsNone(outputs.decoder_attentions)
            (weights,) = outputs.cross_attentions
            self.assertEqual(
                weights.shape, (tester.batch_size, tester.num_attention_heads, tester.seq_length, tester.seq_length)
            )
            config.output_attentions = True
            outputs = model_class(config).eval()(**inputs)
            self.assertEqual(len(outputs.cross_attentions), 1)


class TwinModelTest(CommonModelTests, unittest.TestCase):
    """Twin decoders of LSTM cells: the default model."""

    @unittest.skip(
        "The loss is the mean over two directions, so its gradient in the logits of one is half of what the test "
        "expects; it runs in OneDirectionModelTest."
    )
    def test_encoder_decoder_loss_no_double_shift(self):
        pass


class OneDirectionModelTest(CommonModelTests, unittest.TestCase):
    """One decoder of GRU cells whose output matrix is the embedding."""

    settings = {"decoder_directions": "l2r", "rnn_type": "gru", "tie_word_embeddings": True}


class ConvolutionModelTest(CommonModelTests, unittest.TestCase):
    """An encoder of convolutions."""

    settings = {"decoder_directions": "l2r", "encoder_type": "cnn"}


class SelfAttentionModelTest(CommonModelTests, unittest.TestCase):
    """An encoder of self-attention."""

    settings = {"decoder_directions": "l2r", "encoder_type": "self_attention"}


class ConfigTest(unittest.TestCase):
    def test_config(self):
        ConfigTester(self, config_class=BidirSeq2SeqConfig, hidden_size=38).run_common_tests()


class CommonTokenizerTests(TokenizerTesterMixin):
    """The common tests, for one kind of tokenizer."""

    tokenizer_class = PreTrainedTokenizerFast
    rust_tokenizer_class = PreTrainedTokenizerFast
    folder: tempfile.TemporaryDirectory

    @classmethod
    def build(cls, texts):
        raise NotImplementedError

    @classmethod
    def setUpClass(cls):
        # Any English text with every letter in it.
        texts = [inspect.getdoc(unittest), inspect.getsource(unittest.TestCase)]
        cls.folder = tempfile.TemporaryDirectory()
        cls.build(texts).save_pretrained(cls.folder.name)
        cls.from_pretrained_id = cls.folder.name
        super().setUpClass()

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        cls.folder.cleanup()


class CharTokenizerTest(CommonTokenizerTests, unittest.TestCase):
    @classmethod
    def build(cls, texts):
        return build_char_tokenizer(texts, min_frequency=1)


class BpeTokenizerTest(CommonTokenizerTests, unittest.TestCase):
    @classmethod
    def build(cls, texts):
        return build_bpe_tokenizer(texts, vocab_size=1000)

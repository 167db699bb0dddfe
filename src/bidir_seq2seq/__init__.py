"""Small, fast sequence-to-sequence models that write from both ends, inside the Hugging Face world."""

from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_bidir_seq2seq import BidirSeq2SeqConfig
from .modeling_bidir_seq2seq import (
    BidirSeq2SeqForConditionalGeneration,
    BidirSeq2SeqModel,
    BidirSeq2SeqPreTrainedModel,
)
from .pipeline import BidirSeq2SeqPipeline
from .version import __version__

AutoConfig.register(BidirSeq2SeqConfig.model_type, BidirSeq2SeqConfig, exist_ok=True)
AutoModel.register(BidirSeq2SeqConfig, BidirSeq2SeqModel, exist_ok=True)
AutoModelForSeq2SeqLM.register(BidirSeq2SeqConfig, BidirSeq2SeqForConditionalGeneration, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline("bidir-seq2seq", BidirSeq2SeqPipeline, pt_model=AutoModelForSeq2SeqLM, type="text")

__all__ = [
    "BidirSeq2SeqConfig",
    "BidirSeq2SeqForConditionalGeneration",
    "BidirSeq2SeqModel",
    "BidirSeq2SeqPipeline",
    "BidirSeq2SeqPreTrainedModel",
    "__version__",
]

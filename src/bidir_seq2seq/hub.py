"""Sharing a model: a folder that loads without this package, its model card, and the way to the Hugging Face Hub."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import transformers
from huggingface_hub import CommitInfo, EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.constants import REPOCARD_NAME
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, SAFE_WEIGHTS_NAME, logging

from .encoders_bidir_seq2seq import SOURCE_TOKENIZER_NAME
from .evaluation import format_table
from .loading import forget_origin
from .manifest import write_manifest
from .modeling_bidir_seq2seq import BidirSeq2SeqForConditionalGeneration
from .tokenization import number_of_ids

logger = logging.get_logger(__name__)

# What the Auto classes find in the folder when this package is not installed.
AUTO_MAP = {
    "AutoConfig": "configuration_bidir_seq2seq.BidirSeq2SeqConfig",
    "AutoModel": "modeling_bidir_seq2seq.BidirSeq2SeqModel",
    "AutoModelForSeq2SeqLM": "modeling_bidir_seq2seq.BidirSeq2SeqForConditionalGeneration",
}
# By the language of the card: a model of texts in one of them alone has its card in it, any other in English.
CARD_TEMPLATES = {
    "en": Path(__file__).with_name("model_card_template.md"),
    "zh": Path(__file__).with_name("model_card_template_zh.md"),
}
# A card with this line in it was written by us, and may be written again.
CARD_MARK = "<!-- Written by bidir_seq2seq."
# Of a report's pictures those that a card shows, with what is said to who cannot see them.
PICTURES = {
    "loss_by_steps.png": {
        "en": "Training and validation loss against updates",
        "zh": "训练与验证损失随更新次数的变化",
    },
    "rouge_by_steps.png": {
        "en": "Validation ROUGE-L against updates",
        "zh": "验证集 ROUGE-L 随更新次数的变化",
    },
    "positions.png": {
        "en": "How often the n-th token is right, from the start and from the end, for each direction",
        "zh": "各方向从开头数起和从末尾数起第 n 个词元正确的比例",
    },
}
# Of the scores of `evaluation.score`: the Hub's metric id and the name shown.
HUB_METRICS = {
    "rouge1": ("rouge", "ROUGE-1"),
    "rouge2": ("rouge", "ROUGE-2"),
    "rougeL": ("rouge", "ROUGE-L"),
    "bleu": ("bleu", "BLEU"),
}


def save_for_hub(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    save_directory: str | Path,
    repo_id: str | None = None,
    report_dir: str | Path | None = None,
    **card_kwargs: Any,
) -> list[Path]:
    """Writes a folder that loads with this package and, by `trust_remote_code=True`, without it.

    Model and classes stay as they are: later checkpoints get no Python files. Files of the same names are replaced,
    others are left alone; a model card that someone wrote by hand is kept.

    Args:
        model: A `BidirSeq2SeqForConditionalGeneration`, one that was itself loaded as remote code included.
        tokenizer: The tokenizer that it was trained with.
        save_directory: The folder; made if it is not there.
        repo_id: `user/name` on the Hub, for the card; default: the folder's name.
        report_dir: What `report` wrote about the model; the card shows its pictures, which go along.
        card_kwargs: What the card says, as for [`create_model_card`].

    Returns:
        The files of the model, in the order of their names: weights, configs, tokenizer, code, card, and a manifest
        of checksums.

    Raises:
        ValueError: If model, tokenizer, folder or repository id will not do. Nothing has been written then.
    """
    directory = Path(save_directory)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"save_directory={str(directory)!r} is a file: name a folder, or one that is not there yet")
    # By name: a model loaded as remote code has a class of its own, with the same code.
    if type(model).__name__ != BidirSeq2SeqForConditionalGeneration.__name__:
        raise ValueError(
            f"the model is a {type(model).__name__}, and only the code of BidirSeq2SeqForConditionalGeneration can go "
            "along: give the model itself, not its base model, a wrapper or a subclass"
        )
    if number_of_ids(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens and the model {model.config.vocab_size}: "
            "use the tokenizer that the model was trained with, or model.resize_token_embeddings first"
        )
    if repo_id is not None:
        _check_repo_id(repo_id)
    pictures = _pictures(report_dir) if report_dir is not None else []
    card_kwargs = {**card_kwargs, "pictures": [picture.name for picture in pictures]}
    card = create_model_card(model, tokenizer, repo_id or directory.resolve().name, **card_kwargs)

    model.save_pretrained(directory)
    config = copy.deepcopy(model.config)
    config.auto_map = dict(AUTO_MAP)
    config.to_json_file(directory / CONFIG_NAME)
    # `register_for_auto_class` would do this too, and for every later checkpoint of the process.
    code = custom_object_save(model, directory)
    tokenizer_files = forget_origin(tokenizer).save_pretrained(directory)
    card_file = directory / REPOCARD_NAME
    if card_file.exists() and CARD_MARK not in card_file.read_text(encoding="utf-8-sig"):
        logger.warning(f"{card_file} was not written by bidir_seq2seq and is kept; remove it to get a new one")
    else:
        card.save(card_file)
    names = {CONFIG_NAME, GENERATION_CONFIG_NAME, SAFE_WEIGHTS_NAME, *(Path(file).name for file in tokenizer_files)}
    # A model that came as older remote code knows of none.
    if getattr(model, "source_tokenizer", None) is not None:
        names.add(SOURCE_TOKENIZER_NAME)
    # Code and card are there to be worked on.
    manifest = write_manifest(directory, names)
    for picture in pictures:
        if picture.resolve().parent != directory.resolve():
            shutil.copy(picture, directory)
    names |= {picture.name for picture in pictures}
    names |= {REPOCARD_NAME, manifest.name, *(Path(file).name for file in code)}
    return [directory / name for name in sorted(names)]


def push_to_hub(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    repo_id: str,
    save_directory: str | Path | None = None,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload model",
    create_pr: bool = False,
    **card_kwargs: Any,
) -> CommitInfo:
    """Uploads what [`save_for_hub`] writes, and nothing else; the repository and the branch are made if need be.

    Args:
        model, tokenizer: As for [`save_for_hub`].
        repo_id: `user/name` or `organization/name`.
        save_directory: Where to write the folder and leave it; default: a temporary one.
        private: Whether a new repository is private; default: as its owner has set. An old one stays as it is.
        token: Access token; default: the one of `hf auth login` or `HF_TOKEN`.
        revision: Branch to commit to; default: `main`.
        commit_message: First line of the commit's message.
        create_pr: Whether to open a pull request instead of committing; it goes to `main`.
        card_kwargs: What the card says, as for [`create_model_card`].

    Returns:
        The commit, with `commit_url`, and `pr_url` for a pull request.

    Raises:
        ValueError: As [`save_for_hub`], and if `create_pr` and `revision` contradict each other; the Hub has not been
            asked anything then.
        HfHubHTTPError: If the Hub refuses. What was written to `save_directory` is complete and stays.
    """
    _check_repo_id(repo_id)
    if create_pr and revision not in (None, "main"):
        raise ValueError(f"create_pr opens a pull request to main and revision={revision!r} is not: leave one out")
    with ExitStack() as stack:
        directory = save_directory or stack.enter_context(TemporaryDirectory())
        files = save_for_hub(model, tokenizer, directory, repo_id, **card_kwargs)
        api = HfApi(token=token)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None and not revision.startswith("refs/"):
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=directory,
                # The folder may hold more, such as checkpoints with the state of an optimiser.
                allow_patterns=[file.name for file in files],
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
            )
        except HfHubHTTPError as error:
            if error.response.status_code in (401, 403):
                remedy = "run `hf auth login`, set HF_TOKEN or pass token"
                error.append_to_message(f"\n{repo_id} needs a token that may write to it: {remedy}")
            raise


def create_model_card(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    model_id: str,
    *,
    language: str | Sequence[str] | None = None,
    license: str | None = None,
    datasets: str | Sequence[str] | None = None,
    training_data: str | None = None,
    limitations: str | None = None,
    metrics: Mapping[str, Mapping[str, float]] | None = None,
    dataset_name: str | None = None,
    pictures: Sequence[str] = (),
) -> ModelCard:
    """The model card: sizes are read from the model, and what nobody has said is "not given".

    Args:
        model, tokenizer: What it is about.
        model_id: What the examples load: `user/name` on the Hub, or a folder.
        language: Language code(s) of the texts, such as `"zh"`, for which the card is in Chinese.
        license: Licence id of the weights, such as `"apache-2.0"`.
        datasets: Id(s) of training datasets on the Hub.
        training_data: The training pairs in words, as Markdown.
        limitations: Where this model fails, as Markdown.
        metrics: Scores in percent of each system, as [`evaluation.score`] returns them and `scripts/score.py` writes
            them to `scores.json`. All go into the table; the Hub's own list leaves out the baseline `lead`.
        dataset_name: What the scores were measured on; default: the first of `datasets`.
        pictures: Names of `PICTURES` that stand beside the card.

    Returns:
        The card, whose `data` holds the metadata.

    Raises:
        ValueError: If `metrics` has another form, or it is not said what it was measured on.
    """
    languages, datasets = (_listed(value) for value in (language, datasets))
    dataset_name = dataset_name or (datasets[0] if datasets else None)
    if metrics is not None:
        _check_metrics(metrics, dataset_name)
    results = [
        EvalResult(
            task_type="summarization",
            dataset_type=datasets[0] if datasets else "custom",
            dataset_name=str(dataset_name),
            metric_type=metric_type,
            metric_name=f"{metric_name} ({system})",
            metric_value=round(scores[name], 2),
        )
        for system, scores in (metrics or {}).items()
        if system != "lead"
        for name, (metric_type, metric_name) in HUB_METRICS.items()
    ]
    data = ModelCardData(
        # The name of the results; without any it would be a stray entry.
        model_name=model_id if results else None,
        language=languages,
        license=license,
        library_name="transformers",
        pipeline_tag="summarization",
        tags=["bidir_seq2seq", "seq2seq", "title-generation", "headline-generation", "bidirectional-decoding"],
        datasets=datasets,
        metrics=sorted({result.metric_type for result in results}) or None,
        eval_results=results or None,
    )
    card_language = languages[0] if languages and len(languages) == 1 and languages[0] in CARD_TEMPLATES else "en"
    return ModelCard.from_template(
        data,
        template_path=str(CARD_TEMPLATES[card_language]),
        model_id=model_id,
        mark=CARD_MARK,
        config=model.config,
        generation_config=model.generation_config,
        dtype=str(model.dtype).removeprefix("torch."),
        num_parameters=model.num_parameters(),
        # Tokenizers without a limit hold a huge number instead.
        max_source_length=tokenizer.model_max_length if tokenizer.model_max_length < 10**9 else None,
        transformers_version=transformers.__version__,
        training_data=training_data,
        limitations=limitations,
        dataset_name=dataset_name,
        scores_table=format_table(metrics) if metrics else None,
        systems=list(metrics or ()),
        pictures={name: PICTURES[name][card_language] for name in pictures},
    )


def _listed(value: str | Sequence[str] | None) -> list[str] | None:
    if value is None:
        return None
    return [value] if isinstance(value, str) else list(value)


def _pictures(report_dir: str | Path) -> list[Path]:
    pictures = [Path(report_dir) / name for name in PICTURES if (Path(report_dir) / name).exists()]
    if not pictures:
        raise ValueError(
            f"report_dir={str(report_dir)!r} has none of {', '.join(PICTURES)}: give the folder that the report of "
            "this one run was written to"
        )
    return pictures


def _check_repo_id(repo_id: str) -> None:
    validate_repo_id(repo_id)
    if "/" not in repo_id:
        raise ValueError(f"repo_id={repo_id!r} must say whose it is, as user/{repo_id} or organization/{repo_id}")


def _check_metrics(metrics: Mapping, dataset_name: str | None) -> None:
    needed = (*HUB_METRICS, "first4", "last4")
    for system, scores in metrics.items():
        if not isinstance(scores, Mapping) or not all(name in scores for name in needed):
            raise ValueError(
                f"metrics[{system!r}]={scores!r} must hold {', '.join(needed)}: "
                "give what scripts/score.py writes to scores.json"
            )
    if dataset_name is None:
        raise ValueError("metrics say nothing without their data: give dataset_name or datasets as well")


__all__ = ["PICTURES", "create_model_card", "push_to_hub", "save_for_hub"]

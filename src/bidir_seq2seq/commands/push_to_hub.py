"""Uploads a trained model with its tokenizer, code and model card to the Hugging Face Hub.

    bidir-seq2seq push my_model --repo_id user/name --dry_run
    bidir-seq2seq push my_model --repo_id user/name --language zh --license apache-2.0
    bidir-seq2seq push settings.yaml

With --dry_run nothing is sent: it writes the folder and shows what would go where. To upload, log in once with
`hf auth login`, or set HF_TOKEN.
"""

import json
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from huggingface_hub import HfApi

from ..arguments import parse_arguments
from ..hub import PICTURES, push_to_hub, save_for_hub
from ..loading import load_model_and_tokenizer


@dataclass
class PushArguments:
    """What goes where."""

    model_name_or_path: str = field(metadata={"help": "Trained model; also as the first argument."})
    repo_id: str = field(metadata={"help": "Where to: user/name or organization/name."})
    dry_run: bool = field(default=False, metadata={"help": "Show what would go up, and send nothing."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder to write and keep. Default: a temporary one, kept by a dry run only."}
    )
    private: bool | None = field(
        default=None, metadata={"help": "Whether a new repository is private. Default: as its owner has set."}
    )
    revision: str | None = field(default=None, metadata={"help": "Branch to commit to. Default: main."})
    commit_message: str = field(default="Upload model", metadata={"help": "Message of the commit."})
    create_pr: bool = field(default=False, metadata={"help": "Open a pull request instead of committing."})


@dataclass
class CardArguments:
    """What the model card says."""

    language: list[str] | None = field(default=None, metadata={"help": "Language codes of the texts, such as zh."})
    license: str | None = field(default=None, metadata={"help": "Licence of the weights, such as apache-2.0."})
    datasets: list[str] | None = field(default=None, metadata={"help": "Training datasets on the Hub, by id."})
    training_data: str | None = field(default=None, metadata={"help": "The training pairs, in words."})
    limitations: str | None = field(default=None, metadata={"help": "Where this model fails, in words."})
    metrics_file: str | None = field(default=None, metadata={"help": "The scores.json that 'score' wrote."})
    report_dir: str | None = field(
        default=None,
        metadata={
            "help": "What 'report' wrote about the model: the card shows its pictures. Default: report in its folder, "
            "if there are any."
        },
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "What the scores were measured on. Default: the first of datasets."}
    )


def main(argv: list[str] | None = None) -> None:
    """Runs the command; `argv` instead of the process's own arguments."""
    args, card_args = parse_arguments(
        PushArguments, CardArguments, description=__doc__, args=argv, first="model_name_or_path"
    )
    card = asdict(card_args)
    metrics_file = card.pop("metrics_file")
    card["metrics"] = json.loads(Path(metrics_file).read_text(encoding="utf-8")) if metrics_file else None
    if card["report_dir"] is None:
        report = Path(args.model_name_or_path) / "report"
        card["report_dir"] = report if any((report / name).exists() for name in PICTURES) else None
    model, tokenizer = load_model_and_tokenizer(args.model_name_or_path)
    if args.dry_run:
        output_dir = args.output_dir or tempfile.mkdtemp(prefix="bidir_seq2seq_")
        files = save_for_hub(model, tokenizer, output_dir, args.repo_id, **card)
        for file in files:
            print(f"{file.stat().st_size:>13,}  {file.name}")
        print(f"{sum(file.stat().st_size for file in files):>13,}  bytes in {len(files)} files")
        print(f"Card: {Path(output_dir) / 'README.md'}")
        branch = f"{args.revision or 'main'}{' (as a pull request)' if args.create_pr else ''}"
        print(f"Goes to: {HfApi().endpoint}/{args.repo_id}, revision {branch}")
        print("Dry run: nothing was sent.")
        return
    commit = push_to_hub(
        model,
        tokenizer,
        args.repo_id,
        args.output_dir,
        private=args.private,
        revision=args.revision,
        commit_message=args.commit_message,
        create_pr=args.create_pr,
        **card,
    )
    print(f"Uploaded: {commit.pr_url or commit.commit_url}")

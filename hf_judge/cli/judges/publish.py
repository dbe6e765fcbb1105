"""Publishes heads, and finds those of others: the subcommands ``push`` and ``search``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import webbrowser

from hf_judge.cli.inputs import write_json
from hf_judge.cli.terminal import printable
from hf_judge.head.adapter import Adapter
from hf_judge.head.judge_head import JudgeHead
from hf_judge.publishing.dry_run import dry_run
from hf_judge.publishing.search import find_heads


def run_push(args: argparse.Namespace) -> None:
    head = JudgeHead.from_pretrained(args.head)
    if args.base:
        head.config.base_model_name_or_path, head.config.revision = args.base, None
    if args.dry_run:
        adapter = Adapter(head.config, head.weight, head.bias)
        written = dry_run(adapter, args.repo_id, args.output_dir, base_unknown=args.base_unknown)
        print(f"nothing was sent; the repository would hold {written.repository}\nits card: {written.page}")
        if sys.stdout.isatty():
            webbrowser.open(written.page.resolve().as_uri())
        return
    done = head.push_to_hub(
        args.repo_id,
        commit_message=args.commit_message,
        private=args.private,
        revision=args.revision,
        create_pr=args.create_pr,
        base_unknown=args.base_unknown,
    )
    print(done.pr_url or done.commit_url)


def run_search(args: argparse.Namespace) -> None:
    heads = find_heads(args.target, limit=args.limit)
    if not heads:
        print(f"no published judge head for {args.target}: train one (docs/train-a-judge.md)")
    for head in heads:
        auc = "not stated"
        if head.auc is not None:
            tokens = f"{head.n_acceptable} good and {head.n_mistaken} mistaken tokens"
            auc = f"{head.auc:.3f} over the {tokens} on which it decides"
        lines = [
            f"{head.repo_id}@{head.commit[:12]}  {head.changed}, {head.downloads} downloads",
            f"  certificate: {head.certificate or 'none'}",
            f"  threshold {head.threshold:g}; AUC {auc}",
            f"  draft: {head.draft or 'not stated'}; quantisation of the target: {head.quantization or 'not stated'}",
        ]
        print(printable("\n".join(lines)))
    write_json(args.json, {"target": args.target, "heads": [dataclasses.asdict(head) for head in heads]})

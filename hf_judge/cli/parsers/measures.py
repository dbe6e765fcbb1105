"""Defines the options of the subcommands that run a pair: demo, doctor, tasks, evaluate, bench and generate."""

from __future__ import annotations

from hf_judge.cli.options import (
    MODEL,
    add_batch_size,
    add_draft,
    add_json,
    add_judge,
    add_loading,
    add_max_new_tokens,
    add_measured,
    add_num_assistant_tokens,
    add_target,
    add_tokenizers,
)
from hf_judge.cli.terminal import natural


def add_demo(commands) -> None:
    demo = commands.add_parser(
        "demo", help="see the embedded pair at work: one streamed answer, then three methods compared"
    )
    demo.add_argument("--problems", type=int, default=20, metavar="N", help="held-out problems to answer")
    add_num_assistant_tokens(demo, 32)
    demo.add_argument("--seed", type=int, default=0, metavar="S", help="selects the held-out problems")
    add_json(demo, "write the figures to this file")
    demo.set_defaults(run="demo:run_demo")


def add_doctor(commands) -> None:
    doctor = commands.add_parser(
        "doctor", help="check versions, devices and a pair of models; what a bug report starts with"
    )
    add_target(doctor, f"the large model: {MODEL} (default: the embedded pair)")
    add_draft(doctor, f"the small model: {MODEL} (default: the target itself)")
    add_tokenizers(doctor)
    add_loading(doctor, unset="the CPU")
    add_judge(doctor, f"the judge head: {MODEL} (default: none, or the embedded pair's)")
    add_json(doctor, "write everything that was found to this file")
    doctor.set_defaults(run="doctor:run_doctor")


def add_tasks_command(commands) -> None:
    tasks = commands.add_parser("tasks", help="list the tasks that --task takes by name")
    tasks.set_defaults(run="evaluate:run_tasks")


def add_evaluate(commands) -> None:
    evaluate = commands.add_parser("evaluate", help="compare acceptance rules: accuracy beside speed, with a report")
    add_measured(evaluate, "200, with --quick 6")
    evaluate.add_argument(
        "--rules", nargs="+", default=[], metavar="RULE[=V,V]", help="e.g. judge=0.5,0.9 top-k=2 (default: all)"
    )
    evaluate.add_argument(
        "--calibrate-to-loss",
        type=float,
        metavar="POINTS",
        help="choose each rule's value on other problems: the most lenient that loses at most POINTS of accuracy, "
        "from 0 to 100 (default: measure the values of --rules)",
    )
    evaluate.add_argument(
        "--calibration-problems",
        type=natural,
        metavar="N",
        help="problems to choose with (default: as many as --problems)",
    )
    for rule in ("autojudge", "diversed"):
        text = f"the head of the rule {rule}: {MODEL} (default: the rule is left out)"
        evaluate.add_argument(f"--{rule}", metavar="JUDGE", help=text)
    evaluate.add_argument(
        "--texts",
        metavar="FILE",
        help="JSONL of prompt and response: verified under every rule (default: no texts)",
    )
    add_num_assistant_tokens(evaluate, 16)
    add_batch_size(evaluate, 1, "answers")
    evaluate.add_argument(
        "--temperature",
        type=float,
        nargs="+",
        metavar="T",
        help="0 is greedy (default: 0; with --calibrate-to-loss 0 and 1, each with a report of its own)",
    )
    evaluate.add_argument(
        "--report", metavar="DIR", help="write page, JSON, CSV and plots to this folder (default: print a table alone)"
    )
    evaluate.add_argument("--strict", action="store_true", help="stop at a problem or text that the models refuse")
    evaluate.add_argument("--no-plots", action="store_true", help="write no PNG files")
    evaluate.add_argument(
        "--resume", metavar="DIR", help="keep answers there and continue from them (default: answers/ in --report)"
    )
    evaluate.set_defaults(run="evaluate:run_evaluate")


def add_bench(commands) -> None:
    parser = commands.add_parser("bench", help="measure the speed of a pair on this machine, and what to set")
    add_measured(parser, "8, with --quick 2")
    parser.add_argument(
        "--lengths",
        type=int,
        nargs="+",
        metavar="N",
        help="tokens that are drafted per round, each measured (default: 8 16 32 48, with --quick 16 32)",
    )
    parser.add_argument(
        "--thresholds",
        type=float,
        nargs="+",
        metavar="T",
        help="thresholds from 0 to 1 beside the head's own (default: none)",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        metavar="N",
        help="interleaved repeats of all prompts (default: 5, with --quick 2)",
    )
    parser.add_argument("--no-compile", action="store_true", help="compile nothing, which saves the compiling time")
    parser.set_defaults(run="bench:run_bench")


def add_generate(commands) -> None:
    generate = commands.add_parser("generate", help="answer a prompt, streaming, every token marked by its verdict")
    add_target(generate, required=True)
    add_draft(generate, f"the small model: {MODEL} (default: no draft; with a judge, prompt lookup)")
    add_tokenizers(generate)
    add_judge(generate, f"the judge head: {MODEL} (default: the target's own, if it has one)")
    generate.add_argument("--prompt", required=True, metavar="TEXT", help="what to answer; - reads standard input")
    generate.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")
    add_max_new_tokens(generate, 256)
    add_num_assistant_tokens(generate, None, "the draft's own setting")
    generate.add_argument(
        "--judge-threshold", type=float, metavar="T", help="0 accepts every token, 1 rescues none (default: the head's)"
    )
    generate.add_argument("--sample", action="store_true", help="sample (default: greedy)")
    add_loading(generate, "auto")
    generate.set_defaults(run="generate:run_generate")

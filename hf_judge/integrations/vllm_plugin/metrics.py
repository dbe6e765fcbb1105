"""Show the workers' counts as Prometheus counters on the server's `/metrics`, beside vLLM's own.

The totals travel from a worker to the scheduler on `ModelRunnerOutput`. From the scheduler's process to the server's
they travel in `SchedulerStats.kv_connector_stats`, the one field for values that vLLM does not know, and leave it
there.
This module imports vLLM 0.32 or 0.33.
"""

from __future__ import annotations

import functools

import prometheus_client
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.metrics.loggers import StatLoggerManager

from hf_judge.integrations.vllm_plugin.counts import ATTRIBUTE, KINDS
from hf_judge.integrations.vllm_plugin.settings import KEY, JudgeSettings

TOLD = {
    "draft": "Drafted tokens that the judge saw, by place in the draft.",
    "accepted": "Drafted tokens that were accepted, by place in the draft.",
    "rescued": "Accepted tokens that the judge kept though the target preferred another one, by place in the draft.",
}


def install() -> None:
    """Let this process pass the counts on, or show them."""
    if not getattr(Scheduler.make_stats, "is_judged", False):
        Scheduler.update_from_output = _noting(Scheduler.update_from_output)
        Scheduler.make_stats = _sending(Scheduler.make_stats)
        StatLoggerManager.__init__ = _with_counters(StatLoggerManager.__init__)
        StatLoggerManager.record = _showing(StatLoggerManager.record)


def _noting(update_from_output):
    @functools.wraps(update_from_output)
    def noting(self, scheduler_output, model_runner_output):
        self.hf_judge_totals = getattr(model_runner_output, ATTRIBUTE, getattr(self, "hf_judge_totals", None))
        return update_from_output(self, scheduler_output, model_runner_output)

    return noting


def _sending(make_stats):
    @functools.wraps(make_stats)
    def sending(self, *args, **kwargs):
        stats, totals = make_stats(self, *args, **kwargs), getattr(self, "hf_judge_totals", None)
        sent = getattr(self, "hf_judge_sent", None)
        if stats is None or totals is None or totals == sent:
            return stats
        sent = sent or [[0] * len(row) for row in totals]
        news = [[new - old for new, old in zip(*rows, strict=True)] for rows in zip(totals, sent, strict=True)]
        stats.kv_connector_stats = (stats.kv_connector_stats or {}) | {KEY: news}
        self.hf_judge_sent = totals
        return stats

    sending.is_judged = True
    return sending


def _with_counters(init):
    @functools.wraps(init)
    def counting(self, vllm_config, *args, **kwargs):
        init(self, vllm_config, *args, **kwargs)  # removes the counters of an earlier engine from the registry
        self.hf_judge_counters = None
        if JudgeSettings.of(vllm_config.additional_config) is not None:
            labels = ["model_name", "engine", "position"]
            self.hf_judge_counters = {
                kind: prometheus_client.Counter(f"vllm:hf_judge_{kind}_tokens", TOLD[kind], labels) for kind in KINDS
            }
            self.hf_judge_model = vllm_config.model_config.served_model_name

    return counting


def _showing(record):
    @functools.wraps(record)
    def showing(self, scheduler_stats, *args, engine_idx=None, **kwargs):
        found = scheduler_stats and scheduler_stats.kv_connector_stats
        if found and KEY in found:
            news = found.pop(KEY)
            scheduler_stats.kv_connector_stats = found or None
            for kind, row in zip(KINDS, news, strict=True):
                for position, n in enumerate(row):
                    labels = (self.hf_judge_model, str(engine_idx or 0), str(position))
                    self.hf_judge_counters[kind].labels(*labels).inc(n)
        return record(self, scheduler_stats, *args, engine_idx=engine_idx, **kwargs)

    return showing

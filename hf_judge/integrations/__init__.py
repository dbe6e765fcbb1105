"""Connect judge heads with PEFT, vLLM, lm-evaluation-harness and the AutoJudge repository."""

"""Hold the rules that compare the target's distribution with the draft's, so that they need a draft model."""

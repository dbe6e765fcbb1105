"""Hold the rules that read the target alone, so that they work with every source of drafts."""

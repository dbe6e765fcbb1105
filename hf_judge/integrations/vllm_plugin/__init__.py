"""Hold the parts of the vLLM plugin: settings, the core of both model runners, and an adapter for each."""

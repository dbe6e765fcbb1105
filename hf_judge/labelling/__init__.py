"""From prompts to labelled responses, and from these to one label per token."""

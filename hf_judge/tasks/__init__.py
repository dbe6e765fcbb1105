"""Tasks by name: public benchmarks as prompts with answers that can be checked, and tasks of a user's own."""

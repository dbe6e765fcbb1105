"""Define the subcommands that make judges out of pairs of models."""

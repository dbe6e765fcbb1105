"""Define the options of every subcommand; nothing here imports torch, so that help and errors come at once."""

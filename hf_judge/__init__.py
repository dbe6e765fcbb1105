"""Judge Decoding (arXiv 2501.19309) as a drop-in extension of Hugging Face ``generate()``."""

__version__ = "0.1.0.dev0"

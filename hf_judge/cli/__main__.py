"""``python -m hf_judge.cli``."""

import sys

from hf_judge.cli.commands import main

sys.exit(main())

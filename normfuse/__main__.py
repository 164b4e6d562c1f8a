"""``python -m normfuse``."""

from normfuse.cli import main

main()

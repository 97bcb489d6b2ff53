"""`python -m expunge` and `accelerate launch -m expunge`."""

from expunge.cli import main

main()

"""`python -m infinipot_llm` is the `infinipot` command."""

from infinipot_llm.cli import main

main()

"""`python -m personabot`."""

from personabot.cli import main

main()

"""Bad inputs over all modes, each with what the command has to say to it, and the laws that every
one of them is held to. `python -m tests.hostile` runs them and prints a table."""

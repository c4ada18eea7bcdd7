"""The command line: what a person types, what is said of a run, and what is shown meanwhile."""

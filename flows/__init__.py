"""Prefect flows and the command line: the story, told in named calls."""

"""The Transformer: its parts, its files."""

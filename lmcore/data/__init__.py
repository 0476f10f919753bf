"""From raw files to a token stream and its order."""

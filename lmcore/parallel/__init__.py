"""How a model is divided over processes."""

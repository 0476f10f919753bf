"""The seven speeds of training, one a module: ``python tests/benchmarks/train.py``."""

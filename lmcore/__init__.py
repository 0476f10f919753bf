"""The library behind gristmill: data, models, training, evaluation. Needs neither Prefect nor MLflow."""

import time as _time

# By time.monotonic, when this process first came here: before torch and the like, which take seconds.
BEGAN = _time.monotonic()

"""The library behind gristmill: data, models, training, evaluation. Needs neither Prefect nor MLflow."""

"""Prefect tasks: orchestration around lmcore, and the one door to MLflow."""

"""Keeps MLflow in step with the Optuna storage. No other package imports MLflow."""

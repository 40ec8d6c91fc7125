"""What runs inside a trial process: it trains and reports, and knows neither Optuna nor MLflow."""

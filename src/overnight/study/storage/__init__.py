"""The Optuna storages: exclusive for one process, leased for several, and the tables below them."""

"""How good the answer of a search is, by the epochs that it trains: schedulers on tabulated learning curves."""

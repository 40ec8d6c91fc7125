"""The answer of a study: confirmation, statistics, comparison, the HTML page and the winner to take away."""

"""What a person reads in the morning: how good the winner is, how sure that is, what it cost, what to try next."""

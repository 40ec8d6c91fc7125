"""What a person types and sees: one module for each group of commands."""

"""What "better" means: metrics over the frozen prompt suite, and what is to be known about a preference set."""

"""What "better" means: metrics over the frozen prompt suite."""

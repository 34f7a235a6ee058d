"""What is measured, and what a run's metrics say: definitions and phases."""

"""What learners touch: progress, pictures, exercises."""

"""What the Trainer component runs."""

"""Fine-tune a model with the Trainer."""

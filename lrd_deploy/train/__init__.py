"""Training and fine-tuning with factors frozen in turn."""

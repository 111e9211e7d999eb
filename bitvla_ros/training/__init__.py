"""Fine-tuning of BitVLA."""

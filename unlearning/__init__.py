"""Machine unlearning: from a model, a forget set and a retain set to an unlearned model."""

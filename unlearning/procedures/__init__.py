"""What unlearning methods share."""

"""The fine-tuning tasks, one package each; a task never imports another."""

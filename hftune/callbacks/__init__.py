"""Trainer callbacks that work in any Hugging Face Trainer."""

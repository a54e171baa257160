"""Model cards, push and pull."""

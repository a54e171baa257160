"""One runnable script a task: `accelerate launch recipes/aurora.py --output_dir OUT`."""

"""Trainer subclasses that know no task, checkpoints and resume."""

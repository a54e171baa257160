"""Text classification: tables of texts with labels, models, scores beside baselines, a report."""

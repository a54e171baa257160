"""Microsoft Aurora behind a PreTrainedModel."""

"""The `hftune` command."""

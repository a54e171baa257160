"""What every room uses: atomic files, errors, seeds, lazy imports. Imports nothing of hftune."""

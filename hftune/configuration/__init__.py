"""Typed settings with their sources: default < YAML < environment < sweep < command line."""

from ..utils.versions import check_versions

# Recipes come here before they import torch: an old one is refused in a line that helps.
check_versions()

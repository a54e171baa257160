"""Typed settings with their sources: default < YAML < environment < sweep < command line."""

"""Aardvark: observations to an initial state, and the state to ten days, day by day."""

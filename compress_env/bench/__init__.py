"""Comparing agents: scenarios, searches with many seeds, statistics and the report of them."""

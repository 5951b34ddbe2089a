"""Latency: measured, predicted from a table and repaired."""

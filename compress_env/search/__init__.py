"""Searching: an agent on an environment, every evaluation recorded."""

from compress_env.search.run import SearchResult, search

__all__ = ["SearchResult", "search"]

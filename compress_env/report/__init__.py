"""Reports of runs: the page, its plots and tables."""

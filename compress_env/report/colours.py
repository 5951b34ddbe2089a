"""The colours of all pictures."""

BLUE, GREEN, ORANGE, RED = "#2f6db5", "#2e8b57", "#d9822b", "#c0392b"
INK, GREY = "#1f2933", "#9aa3ad"
PALE_GREY, PALE_RED, GRID = "#eceff1", "#f6e3e0", "#e6e9ec"

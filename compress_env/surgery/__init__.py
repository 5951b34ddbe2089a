"""Networks taken apart: tracing, channels, costs, plans and students."""

"""A walk over the decisions of a problem: state, clamp and observation."""

"""Students learn from their teacher: full distillation, and the short one of an evaluation."""

"""Where a budget is best spent: what each decision alone costs (sensitivities), and the plan that loses least within limits."""

"""Where a model and its data come from, and which of its layers can be factorised."""

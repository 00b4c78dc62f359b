"""How good a model is: one file per claim that is measured. Knows models, not Lightning."""

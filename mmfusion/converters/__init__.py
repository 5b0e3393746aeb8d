"""Model to model: what a configuration's `converter` list does to a model that is built and filled, in order."""

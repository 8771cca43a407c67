"""Many samples: in this process, on a Ray cluster, in InferKit."""

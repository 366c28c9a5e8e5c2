"""`wherry build`: a Dockerfile becomes an image, step by step, each step at most once (docs/decisions/0014)."""

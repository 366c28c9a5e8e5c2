"""The Docker Engine API over the engine: `server` listens, `gate` judges, one module each for a theme's routes."""

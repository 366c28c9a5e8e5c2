"""Policy: names, defaults, the docker-like verbs. Import `Engine` from `wherry.engine.engine`."""

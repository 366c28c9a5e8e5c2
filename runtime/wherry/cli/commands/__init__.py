"""The commands, one module a theme, each imported when it is invoked."""

"""The warm process: Python started and imported once, and a fork of it for each command that the front hands over."""

"""What the tests share beside fixtures."""

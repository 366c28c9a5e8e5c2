"""wherryd: one asyncio process that serves other people's protocols over the engine. It holds no truth of its own."""

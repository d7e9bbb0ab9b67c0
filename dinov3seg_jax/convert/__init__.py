"""Released weights into this project's parameters: one table of rules per source, and the engine that applies them."""

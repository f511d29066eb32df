"""Generated from proto/ by scripts/proto. Never edited. Knows nothing of the project."""

"""Mail: opened from its queue, rendered, handed over. Nothing about a login ever waits for it."""

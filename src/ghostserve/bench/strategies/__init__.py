"""Every way of keeping a KV cache safe on the embedded engine, side by side: what it costs, what it brings back."""

"""The HTTP endpoint: API, page, batching and the Ray Serve application."""

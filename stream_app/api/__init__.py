"""Rankings and clicks over HTTP, and the sink that keeps the latest rankings in Redis or Valkey."""

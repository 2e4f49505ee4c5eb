"""Where results go: what the sinks share, and the sinks for files, tables and webhooks."""

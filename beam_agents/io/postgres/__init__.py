"""Changes of PostgreSQL's tables, by logical replication."""

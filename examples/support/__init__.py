"""Customer messages of a bank: each is classified, then answered or routed to a person."""

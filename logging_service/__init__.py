"""A logging service for applications that call language models.

Read in this order: `events` (what an event is, and its bytes), `ports` (the two seams),
`redis_queue` and `postgres_store` (the adapters), then the three processes, each whole:
`producer`, `consumer`, `query_service`.
"""

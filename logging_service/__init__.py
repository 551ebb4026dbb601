"""A logging service for applications that call language models.

Read in this order: `events` (what an event is, and its bytes), `ports` (the two seams),
`redis_queue`, `spool_queue` and `postgres_store` (the adapters), `failover_queue` (Redis with a
spool behind it), `delivering` (the consumer's loop), `balance` (what adds up to what), then the
three processes: `producer`, `consumer`, `query_service`.
"""

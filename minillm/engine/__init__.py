"""The engine: it queues requests, schedules them over the KV memory, and runs steps of four phases."""

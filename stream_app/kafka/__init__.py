"""The worker's ways to Kafka: Faust's transport, group membership, credentials, lag, and a consumer without a group."""

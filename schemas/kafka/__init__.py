"""How to reach Kafka, and the topics that have to be there; the settings of both."""

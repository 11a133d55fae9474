"""What is on Kafka's topics: clicks, rankings, rejected clicks, announcements, and their JSON Schemas."""

"""Avro, Protobuf and JSON Schema with a schema registry, in Confluent's wire format."""

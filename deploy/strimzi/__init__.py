"""Topics, users and rights as manifests for Strimzi, the Kafka operator of Kubernetes: `python -m deploy.strimzi`."""

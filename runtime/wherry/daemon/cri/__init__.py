"""The Kubernetes Container Runtime Interface v1: requests to engine calls, records to messages."""

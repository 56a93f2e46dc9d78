"""What the cluster is: pure decisions, one image, the metadata log. Map: broker/README.md."""
